// npm `workers-ai-provider` under the `ai` SDK, over REST; its host is fixed, so its own `fetch` option moves it here.
import { generateText, streamText } from "ai";
import { createWorkersAI } from "workers-ai-provider";
import { LORA, MODEL, QUESTION, TOKEN, URL_, errorOf, report } from "./report.mjs";

const provider = createWorkersAI({
  accountId: "local",
  apiKey: TOKEN,
  fetch: (url, options) => fetch(String(url).replace("https://api.cloudflare.com", URL_), options),
});
const ask = (settings, options) =>
  generateText({ model: provider(MODEL, settings), prompt: QUESTION, temperature: 0, maxRetries: 0, ...options });

const plain = await ask({});
const stream = [];
const streamed = streamText({ model: provider(MODEL, { lora: LORA }), prompt: QUESTION, temperature: 0, maxRetries: 0 });
for await (const piece of streamed.textStream) stream.push(piece);

report("workers-ai-provider", {
  answers: { base: plain.text, [LORA]: (await ask({ lora: LORA })).text },
  usage: plain.usage,
  stream,
  errors: {
    unknown_lora: await errorOf(() => ask({ lora: "nobody" })),
    bad_body: await errorOf(() => ask({}, { temperature: 9 })),
  },
});
