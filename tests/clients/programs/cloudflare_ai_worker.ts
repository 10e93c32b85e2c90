// A Worker of the model's own year: `@cloudflare/ai` around the binding.
import { Ai } from "@cloudflare/ai";

export default {
  async fetch(request, env): Promise<Response> {
    const ai = new Ai(env.AI);
    const ask = async (input: object) =>
      (await ai.run("@cf/google/gemma-7b-it-lora", {
        messages: [{ role: "user", content: "What is the capital of France?" }],
        temperature: 0,
        ...input,
      })) as { response: string };
    const answers = { base: (await ask({})).response, pirate: (await ask({ lora: "pirate" })).response };
    return Response.json({ answers });
  },
} satisfies ExportedHandler<{ AI: unknown }>;
