// npm `miniflare`: a Worker on its simulator, the AI binding sent to the server by its remote-proxy form.
import { readFileSync } from "node:fs";
import { transformSync } from "esbuild";
import { Miniflare } from "miniflare";

const { code } = transformSync(readFileSync(process.argv[2], "utf8"), { loader: "ts" });
const miniflare = new Miniflare({
  modules: true,
  script: code,
  cf: false,
  compatibilityDate: "2026-07-01",
  ai: { binding: "AI", remoteProxyConnectionString: new URL(process.env.GEMLANE_URL) },
});
try {
  const response = await miniflare.dispatchFetch("http://worker/");
  console.log(await response.text());
  process.exitCode = response.ok ? 0 : 1;
} finally {
  await miniflare.dispose();
}
