// Vercel AI SDK (ai, @ai-sdk/openai-compatible): texts, streams, tools, objects, reasoning.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, packages] = process.argv.slice(2);
const require = createRequire(packages + "/");
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { generateText, streamText, generateObject, stepCountIs, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

const provider = createOpenAICompatible({
  name: "a2d",
  baseURL: url,
  apiKey: "none",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider("tiny");
const messages = [{ role: "user", content: "2+2?" }];

const whole = await generateText({ model, messages, maxOutputTokens: 8, maxRetries: 0 });
const stream = streamText({ model, messages, maxOutputTokens: 8, maxRetries: 0 });
assert.equal(await stream.text, whole.text);
assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);

const light = tool({
  description: "Switches the light.",
  inputSchema: z.object({ on: z.boolean() }),
  execute: async ({ on }) => (on ? "on" : "off"),
});
for (const call of [generateText, streamText]) {
  const called = await call({
    model,
    messages,
    tools: { light },
    toolChoice: "required",
    maxOutputTokens: 200,
    providerOptions: { a2d: { parallel_tool_calls: false } }, // a random model finds no end
    stopWhen: stepCountIs(2),
    maxRetries: 0,
  });
  const steps = await called.steps;
  assert.equal(steps.length, 2); // the second sends call and result back
  assert.equal(typeof steps[0].toolCalls[0].input.on, "boolean");
}

const pet = z.object({ kind: z.enum(["cat", "dog"]), old: z.boolean() });
const { object } = await generateObject({
  model,
  messages,
  schema: pet,
  maxOutputTokens: 200,
  maxRetries: 0,
});
assert.equal(typeof object.old, "boolean");

const forced = { a2d: { guided_regex: "<think>\nR\n</think>\n\nhi" } };
const thinking = await generateText({
  model,
  messages,
  maxOutputTokens: 200,
  providerOptions: forced,
  maxRetries: 0,
});
assert.equal(thinking.reasoningText, "R");
assert.equal(thinking.text, "hi");
await generateText({
  model,
  messages: [...messages, ...thinking.response.messages, ...messages],
  maxOutputTokens: 2,
  maxRetries: 0,
});
