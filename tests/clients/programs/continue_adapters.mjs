// npm `@continuedev/openai-adapters`, by which Continue's editor extensions reach any server that speaks like OpenAI.
import { constructLlmApi } from "@continuedev/openai-adapters";
import { LORA, QUESTION, TOKEN, URL_, errorOf, report } from "./report.mjs";

const BASE = "gemma-7b-it-lora";
const api = constructLlmApi({ provider: "openai", apiKey: TOKEN, apiBase: `${URL_}/v1/` });
const signal = new AbortController().signal;
const body = (model) => ({
  model,
  messages: [{ role: "user", content: [{ type: "text", text: QUESTION }] }],
  temperature: 0,
  max_tokens: 64,
});
const ask = (model) => api.chatCompletionNonStream({ ...body(model), stream: false }, signal);

const plain = await ask(BASE);
const stream = [];
for await (const chunk of api.chatCompletionStream({ ...body(`${BASE}:${LORA}`), stream: true }, signal)) {
  stream.push(chunk.choices[0]?.delta?.content ?? "");
}
const prompt = `<start_of_turn>user\n${QUESTION}<end_of_turn>\n<start_of_turn>model\n`;
const done = await api.completionNonStream({ model: BASE, prompt, temperature: 0, max_tokens: 64, stop: [" is"] }, signal);

report("@continuedev/openai-adapters", {
  answers: { base: plain.choices[0].message.content, [LORA]: (await ask(`${BASE}:${LORA}`)).choices[0].message.content },
  usage: plain.usage,
  stream,
  completion: done.choices[0].text,
  models: (await api.list()).map((model) => model.id),
  errors: { unknown_lora: await errorOf(() => ask(`${BASE}:nobody`)) },
});
