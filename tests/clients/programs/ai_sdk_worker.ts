// A Worker of the `ai` SDK: `workers-ai-provider` over `env.AI`, as its README sets it up.
import { generateText, streamText } from "ai";
import { createWorkersAI } from "workers-ai-provider";

interface Env {
  AI: Ai;
}

const prompt = "What is the capital of France?";

export default {
  async fetch(request, env): Promise<Response> {
    const workersai = createWorkersAI({ binding: env.AI });
    const ask = (settings: object) => ({
      model: workersai("@cf/google/gemma-7b-it-lora", settings),
      prompt,
      temperature: 0,
      maxRetries: 0,
    });
    const stream: string[] = [];
    for await (const piece of streamText(ask({ lora: "pirate" })).textStream) stream.push(piece);
    let error = {};
    try {
      await generateText(ask({ lora: "nobody" }));
    } catch (thrown) {
      error = { name: (thrown as Error).name, text: (thrown as Error).message };
    }
    const answers = {
      base: (await generateText(ask({}))).text,
      pirate: (await generateText(ask({ lora: "pirate" }))).text,
    };
    return Response.json({ answers, stream, error });
  },
} satisfies ExportedHandler<Env>;
