export interface Env {
AI: Ai;
}
export default {
async fetch(request, env): Promise<Response> {
const response = await env.AI.run("@cf/google/gemma-7b-it-lora", {
prompt: "tell me a story",
raw: true, //skip applying the default chat template
lora: "00000000-0000-0000-0000-000000000", //the finetune id OR name
});
return Response.json(response);
},
} satisfies ExportedHandler<Env>;
