// npm `cloudflare`: run, streamed run, errors, models.
import Cloudflare from "cloudflare";
import { LORA, MODEL, QUESTION, TOKEN, URL_, errorOf, report } from "./report.mjs";

const client = new Cloudflare({ baseURL: `${URL_}/client/v4`, apiToken: TOKEN, maxRetries: 0 });
const run = (body) =>
  client.ai.run(MODEL, { account_id: "local", prompt: QUESTION, temperature: 0, max_tokens: 64, ...body });

const plain = await run({});
const response = await run({ lora: LORA, stream: true }).asResponse();
const lines = (await response.text()).split("\n").filter(Boolean).map((line) => line.replace(/^data: /, ""));
if (lines.pop() !== "[DONE]") throw new Error("the stream did not end with [DONE]");
const models = [];
for await (const model of client.ai.models.list({ account_id: "local" })) models.push(model.name);

report("cloudflare", {
  answers: { base: plain.response, [LORA]: (await run({ lora: LORA })).response },
  usage: plain.usage,
  stream: lines.map((line) => JSON.parse(line).response),
  errors: {
    unknown_lora: await errorOf(() => run({ lora: "nobody" })),
    bad_body: await errorOf(() => run({ temperature: 9 })),
  },
  models,
});
