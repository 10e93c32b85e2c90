// Blends: which adapters a column applies and how strongly, and how a request names them.

export const MAX_COLUMNS = 8;
export const MIN_SCALE = 0;
export const MAX_SCALE = 2;
export const SCALE_STEP = 0.05;
/** The slider's range is what is useful; the number beside it takes what the server takes. */
export const SCALE_LIMIT = 100;

/**
 * What the key `lora` holds: nothing for the base model, text where every name can stand in text, else a list.
 * @param {{name: string, scale: number}[]} members
 * @returns {string|{name: string, scale: number}[]|undefined}
 */
export function loraOf(members) {
  if (members.length === 0) return undefined;
  if (members.some(({ name }) => /[:+\s]/.test(name))) return members.map(({ name, scale }) => ({ name, scale }));
  return members.map(({ name, scale }) => (scale === 1 ? name : `${name}:${scale}`)).join("+");
}

/** How a column is called on the page. */
export function titleOf(members) {
  if (members.length === 0) return "Base model";
  return members.map(({ name, scale }) => (scale === 1 ? name : `${name} ×${scale}`)).join(" + ");
}

/** A scale as the server takes it, or null where the text is not a number. */
export function parseScale(text) {
  const scale = Number(text);
  if (text.trim() === "" || !Number.isFinite(scale)) return null;
  return Math.min(SCALE_LIMIT, Math.max(-SCALE_LIMIT, Math.round(scale * 1000) / 1000));
}

/** Whether two columns apply the same adapters equally. */
export function isSameBlend(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}
