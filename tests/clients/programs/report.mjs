// What every Node program here shares: where the server is, what is asked, and the one JSON object it prints.
import { readFileSync } from "node:fs";

export const {
  GEMLANE_URL: URL_,
  GEMLANE_QUESTION: QUESTION,
  GEMLANE_LORA: LORA,
  GEMLANE_TOKEN: TOKEN,
} = process.env;
export const MODEL = "@cf/google/gemma-7b-it-lora";

export async function errorOf(call) {
  try {
    await call();
  } catch (error) {
    const details = (error.errors ?? []).map((detail) => JSON.stringify(detail));
    const text = [error.message, error.responseBody ?? "", ...details].join(" ");
    return { class: error.constructor.name, name: error.name, status: error.status ?? error.statusCode ?? null, text };
  }
  return {};
}

export function report(name, outcome) {
  const { version } = JSON.parse(readFileSync(new URL(`../node_modules/${name}/package.json`, import.meta.url)));
  console.log(JSON.stringify({ version, ...outcome }));
}
