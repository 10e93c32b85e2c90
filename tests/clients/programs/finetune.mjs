// npm `cloudflare`: create a finetune, upload its two files, list.
import { createReadStream } from "node:fs";
import Cloudflare from "cloudflare";
import { MODEL, TOKEN, URL_, errorOf, report } from "./report.mjs";

const { GEMLANE_PEFT: folder, GEMLANE_NAME: name } = process.env;
const client = new Cloudflare({ baseURL: `${URL_}/client/v4`, apiToken: TOKEN, maxRetries: 0 });
const { finetunes } = client.ai;
const create = () => finetunes.create({ account_id: "local", model: MODEL, name });

const { id } = await create();
for (const file_name of ["adapter_config.json", "adapter_model.safetensors"]) {
  const file = createReadStream(`${folder}/${file_name}`);
  await finetunes.assets.create(id, { account_id: "local", file, file_name });
}
const listed = await (await finetunes.list({ account_id: "local" }).asResponse()).text();
const published = [];
for await (const finetune of finetunes.public.list({ account_id: "local" })) published.push(finetune.name);

report("cloudflare", {
  id,
  is_listed: listed.includes(name),
  public: published,
  errors: { taken: await errorOf(create) },
});
