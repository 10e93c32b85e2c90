// From what is on the screen to the request of one column. Pure: the run and the code lines both come from here.

import { loraOf } from "./blends.js";

export const MODEL = "gemma-7b-it-lora";

/**
 * @typedef {{id: string, members: {name: string, scale: number}[]}} Column
 * @typedef {{prompt: string, answers: Object<string, {text: string, status: string}>}} Turn
 * @typedef {{mode: "chat"|"raw", system: string, parameters: Object<string, number>, streams: boolean, turns: Turn[]}} Conversation
 */

/**
 * The path and body that ask `column` for its answer to the turn at `index`.
 *
 * A chat sends the turns before it that this column answered; a raw prompt stands alone.
 * @param {Conversation} conversation
 * @param {Column} column
 * @param {number} index
 */
export function requestOf(conversation, column, index) {
  const { prompt } = conversation.turns[index];
  const lora = loraOf(column.members);
  const common = { model: MODEL, ...(lora === undefined ? {} : { lora }) };
  if (conversation.mode === "raw") {
    return { path: "/v1/completions", body: { ...common, prompt, ...conversation.parameters } };
  }
  const messages = [...earlier(conversation, column, index), { role: "user", content: prompt }];
  if (conversation.system.trim()) messages.unshift({ role: "system", content: conversation.system });
  return { path: "/v1/chat/completions", body: { ...common, messages, ...conversation.parameters } };
}

function earlier(conversation, column, index) {
  return conversation.turns.slice(0, index).flatMap(({ prompt, answers }) => {
    const answer = answers[column.id];
    if (!answer?.text || answer.status === "failed") return [];
    return [
      { role: "user", content: prompt },
      { role: "assistant", content: answer.text },
    ];
  });
}
