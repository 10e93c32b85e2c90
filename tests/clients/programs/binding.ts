// A Worker that tries `env.AI` from all sides and answers with what it saw.
interface Env {
  AI: Ai;
}

const MODEL = "@cf/google/gemma-7b-it-lora";
const PROMPT = { prompt: "What is the capital of France?", temperature: 0, max_tokens: 64 };

async function errorOf(call: () => Promise<unknown>) {
  try {
    await call();
  } catch (error) {
    return { name: (error as Error).name, text: (error as Error).message };
  }
  return {};
}

async function streamOf(env: Env): Promise<string[]> {
  const stream = await env.AI.run(MODEL, { ...PROMPT, lora: "pirate", stream: true });
  if (!(stream instanceof ReadableStream)) throw new Error("no stream came");
  const lines = (await new Response(stream).text()).split("\n").filter(Boolean);
  if (lines.pop() !== "data: [DONE]") throw new Error("the stream did not end with [DONE]");
  return lines.map((line) => JSON.parse(line.slice("data: ".length)).response);
}

export default {
  async fetch(request, env): Promise<Response> {
    const plain = await env.AI.run(MODEL, PROMPT);
    const raw: Response = await env.AI.run(MODEL, PROMPT, { returnRawResponse: true });
    return Response.json({
      answers: { base: plain.response, pirate: (await env.AI.run(MODEL, { ...PROMPT, lora: "pirate" })).response },
      usage: plain.usage,
      stream: await streamOf(env),
      raw: { status: raw.status, response: (await raw.json<{ response: string }>()).response },
      models: (await env.AI.models()).map((model) => model.name),
      errors: {
        unknown_lora: await errorOf(() => env.AI.run(MODEL, { ...PROMPT, lora: "nobody" })),
        bad_body: await errorOf(() => env.AI.run(MODEL, { ...PROMPT, temperature: 9 })),
        unknown_model: await errorOf(() => env.AI.run("@cf/nobody/nothing", PROMPT)),
        bad_stream: await errorOf(() => env.AI.run(MODEL, { ...PROMPT, lora: "nobody", stream: true })),
      },
    });
  },
} satisfies ExportedHandler<Env>;
