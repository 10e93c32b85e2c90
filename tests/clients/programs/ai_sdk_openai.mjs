// npm `@ai-sdk/openai` under the `ai` SDK: `openai(id)` speaks the Responses API, `openai.chat(id)` chat completions.
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";
import { LORA, QUESTION, TOKEN, URL_, errorOf, report } from "./report.mjs";

const BASE = "gemma-7b-it-lora";
const openai = createOpenAI({ baseURL: `${URL_}/v1`, apiKey: TOKEN });
const settings = { prompt: QUESTION, temperature: 0, maxOutputTokens: 64, maxRetries: 0 };
const schema = z.object({ kind: z.enum(["city", "village"]), size: z.number().int().min(1).max(9) });
const tools = { clock: tool({ description: "The time of day.", inputSchema: z.object({}), execute: () => "noon" }) };

const plain = await generateText({ model: openai(BASE), ...settings });
const adapted = await generateText({ model: openai.chat(`${BASE}:${LORA}`), tools, ...settings });
const stream = [];
for await (const piece of streamText({ model: openai(`${BASE}:${LORA}`), ...settings }).textStream) stream.push(piece);

report("@ai-sdk/openai", {
  answers: { base: plain.text, [LORA]: adapted.text },
  usage: plain.usage,
  stream,
  typed: (await generateObject({ model: openai(BASE), schema, ...settings })).object,
  chat_typed: (await generateObject({ model: openai.chat(BASE), schema, ...settings })).object,
  errors: { unknown_lora: await errorOf(() => generateText({ model: openai(`${BASE}:nobody`), ...settings })) },
});
