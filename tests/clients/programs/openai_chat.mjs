// npm `openai`: chat completions at the base URL that it is given.
import OpenAI from "openai";
import { LORA, QUESTION, TOKEN, URL_, errorOf, report } from "./report.mjs";

const { GEMLANE_MODEL: model, GEMLANE_OPENAI_PATH: path, GEMLANE_ADAPTERS_ARE_MODELS: areModels } = process.env;
const client = new OpenAI({ baseURL: URL_ + path, apiKey: TOKEN, maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const ask = (body) => client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 64, ...body });

const plain = await ask({});
const adapted = await ask(areModels ? { model: `${model}:${LORA}` } : { lora: LORA });
const models = [];
if (areModels) for await (const listed of client.models.list()) models.push(listed.id);
const stream = [];
for await (const chunk of await ask({ lora: LORA, stream: true, stream_options: { include_usage: true } }))
  stream.push(chunk.choices[0]?.delta.content ?? "");

report("openai", {
  answers: { base: plain.choices[0].message.content, [LORA]: adapted.choices[0].message.content },
  usage: plain.usage,
  stream,
  models,
  errors: {
    unknown_lora: await errorOf(() => ask({ lora: "nobody" })),
    bad_body: await errorOf(() => ask({ temperature: 9 })),
  },
});
