// `env.AI` as a service binding: run() and models(), asked of gemlane over HTTP as workerd's own binding asks.
import { WorkerEntrypoint } from "cloudflare:workers";

export default class extends WorkerEntrypoint {
  async run(model, inputs, options = {}) {
    const { prefix, extraHeaders, returnRawResponse, signal, sessionOptions, ...rest } = options;
    const response = await this.#ask("/run?version=3", {
      method: "POST",
      headers: { "content-type": "application/json", "cf-consn-model-id": model, ...extraHeaders },
      body: JSON.stringify({ inputs, options: rest }),
    });
    if (returnRawResponse) return response;
    if (!response.ok) throw await errorOf(response);
    return response.headers.get("content-type") === "application/json" ? response.json() : response.body;
  }

  async models(params = {}) {
    const response = await this.#ask(`/ai-api/models/search?${new URLSearchParams(params)}`);
    if (!response.ok) throw await errorOf(response);
    return (await response.json()).result;
  }

  #ask(path, { headers, ...init } = {}) {
    const { GEMLANE_URL, GEMLANE_TOKEN } = this.env;
    const token = GEMLANE_TOKEN ? { authorization: `Bearer ${GEMLANE_TOKEN}` } : {};
    return fetch(GEMLANE_URL + path, { ...init, headers: { ...headers, ...token } });
  }

  fetch() {
    return new Response("ai-shim answers env.AI only\n", { status: 404 });
  }
}

async function errorOf(response) {
  const { internalCode, name, description, errors } = await response.json();
  const message = errors ? `${errors[0].code}: ${errors[0].message}` : `${internalCode}: ${description}`;
  return Object.assign(new Error(message), { name: name ?? "InferenceUpstreamError" });
}
