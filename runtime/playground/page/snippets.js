// A request as lines to paste: curl, Python (the openai package), JavaScript (fetch). Pure.

const OPENAI_OWN = new Set([
  "model",
  "messages",
  "prompt",
  "max_tokens",
  "temperature",
  "top_p",
  "seed",
  "frequency_penalty",
  "presence_penalty",
]);

/** `{language: lines}` for a request; `hasToken` adds the header, with the token left to the environment. */
export function snippetsOf({ path, body }, origin, hasToken) {
  return {
    curl: curl(path, body, origin, hasToken),
    Python: python(path, body, origin, hasToken),
    JavaScript: javascript(path, body, origin, hasToken),
  };
}

function curl(path, body, origin, hasToken) {
  const data = JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`);
  const token = hasToken ? `  -H "Authorization: Bearer $GEMLANE_TOKEN" \\\n` : "";
  return `curl -s ${origin}${path} \\\n  -H 'Content-Type: application/json' \\\n${token}  -d '${data}'\n`;
}

function python(path, body, origin, hasToken) {
  const isChat = path.endsWith("/chat/completions");
  const own = Object.entries(body).filter(([name]) => OPENAI_OWN.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI_OWN.has(name)));
  const lines = own.map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${literal(extra, 4)},`);
  const key = hasToken ? `os.environ["GEMLANE_TOKEN"]` : `"none"`;
  return [
    ...(hasToken ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=${key})`,
    `answer = client.${isChat ? "chat.completions" : "completions"}.create(`,
    ...lines,
    ")",
    `print(answer.choices[0].${isChat ? "message.content" : "text"})`,
    "",
  ].join("\n");
}

function javascript(path, body, origin, hasToken) {
  const isChat = path.endsWith("/chat/completions");
  const token = hasToken ? ", Authorization: `Bearer ${process.env.GEMLANE_TOKEN}`" : "";
  const json = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ");
  return [
    `const response = await fetch("${origin}${path}", {`,
    `  method: "POST",`,
    `  headers: { "Content-Type": "application/json"${token} },`,
    `  body: JSON.stringify(${json}),`,
    `});`,
    `const answer = await response.json();`,
    `console.log(answer.choices[0].${isChat ? "message.content" : "text"});`,
    "",
  ].join("\n");
}

/** A JSON value as Python writes it; JSON's text literals are Python's too. */
function literal(value, indent) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const pad = " ".repeat(indent + 4);
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, indent + 4))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const flat = `${open}${items.join(", ")}${close}`;
  if (flat.length < 88 && !flat.includes("\n")) return flat;
  return `${open}\n${items.map((item) => `${pad}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}
