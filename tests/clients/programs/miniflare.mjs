// npm `miniflare`: a Worker on its simulator, the AI binding sent to the server by its remote-proxy form.
import { buildSync } from "esbuild";
import { Miniflare } from "miniflare";

const built = buildSync({ entryPoints: [process.argv[2]], bundle: true, format: "esm", write: false });
const miniflare = new Miniflare({
  modules: true,
  script: built.outputFiles[0].text,
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
