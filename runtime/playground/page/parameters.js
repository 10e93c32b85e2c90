// The parameters of the model's schema with their ranges; a test holds this table against the server's own schema.

/**
 * `fallback` is what the server does when the parameter is not sent. `max` null: the schema sets no upper bound.
 * `slider`: how far the slider goes where that is not `max`, or false where a slider would be of no use.
 */
export const PARAMETERS = [
  {
    name: "max_tokens",
    label: "Longest answer",
    unit: "tokens",
    min: 1,
    max: null,
    slider: 1024,
    step: 1,
    value: 256,
    fallback: "256",
  },
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 5,
    step: 0.05,
    fallback: "0.6",
    hint: "0 always takes the most likely token",
  },
  { name: "top_p", label: "Top p", min: 0, max: 2, step: 0.01, fallback: "1", hint: "1 and above: off" },
  { name: "top_k", label: "Top k", min: 1, max: 50, step: 1, fallback: "off" },
  {
    name: "seed",
    label: "Seed",
    min: 1,
    max: 9999999999,
    slider: false,
    step: 1,
    fallback: "random",
    hint: "The same seed repeats an answer",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    min: 0,
    max: 2,
    step: 0.05,
    fallback: "1",
    hint: "0 and 1: off",
  },
  { name: "frequency_penalty", label: "Frequency penalty", min: 0, max: 2, step: 0.05, fallback: "0" },
  { name: "presence_penalty", label: "Presence penalty", min: 0, max: 2, step: 0.05, fallback: "0" },
];

/** What a new conversation begins with. */
export function defaultParameters() {
  return Object.fromEntries(
    PARAMETERS.filter(({ value }) => value !== undefined).map(({ name, value }) => [name, value]),
  );
}

/** The fault of a value in words, or null where there is none. */
export function faultOf(parameter, value) {
  const { label, min, max, step } = parameter;
  if (!Number.isFinite(value)) return `${label} must be a number`;
  if (step === 1 && !Number.isInteger(value)) return `${label} must be a whole number`;
  if (value < min || (max !== null && value > max)) {
    return max === null ? `${label} must be at least ${min}` : `${label} must be between ${min} and ${max}`;
  }
  return null;
}
