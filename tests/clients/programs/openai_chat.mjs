// npm `openai`: chat completions at the base URL that it is given.
import OpenAI from "openai";
import { LORA, QUESTION, URL_, errorOf, report } from "./report.mjs";

const { GEMLANE_MODEL: model, GEMLANE_OPENAI_PATH: path } = process.env;
const client = new OpenAI({ baseURL: URL_ + path, apiKey: "token", maxRetries: 0 });
const messages = [{ role: "user", content: QUESTION }];
const ask = (body) => client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 64, ...body });

const plain = await ask({});
const stream = [];
for await (const chunk of await ask({ lora: LORA, stream: true, stream_options: { include_usage: true } }))
  stream.push(chunk.choices[0]?.delta.content ?? "");

report("openai", {
  answers: {
    base: plain.choices[0].message.content,
    [LORA]: (await ask({ lora: LORA })).choices[0].message.content,
  },
  usage: plain.usage,
  stream,
  errors: {
    unknown_lora: await errorOf(() => ask({ lora: "nobody" })),
    bad_body: await errorOf(() => ask({ temperature: 9 })),
  },
});
