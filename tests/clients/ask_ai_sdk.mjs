// The Vercel AI SDK, with its provider for servers that speak OpenAI's API.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embed, generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";
import * as p from "./probe.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const { RECORDED, REAL, SYSTEM, check, feature, heard } = p;
const provider = (apiKey = p.KEY) =>
  createOpenAICompatible({
    name: "baton",
    baseURL: p.URL_,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
const baton = provider();
const ask = (options) => generateText({ model: baton(RECORDED), maxRetries: 0, ...options });
const Person = z.object({ born: z.number().int(), alive: z.boolean() });
const weather = tool({
  description: "Say what the weather is.",
  inputSchema: z.object({ city: z.string() }),
  execute: async (input) => p.getWeather(input),
});
const tools = { get_weather: weather };

feature("chat", async () => {
  const told = heard((await ask({ prompt: "Say something." })).text);
  check(told.heard[0] === "Say something.", told);
});
feature("stream", async () => {
  const pieces = [];
  const stream = streamText({ model: baton(RECORDED), prompt: "count to 20" });
  for await (const piece of stream.textStream) pieces.push(piece);
  check(pieces.length > 10 && pieces.join("").trim().endsWith("20"), pieces);
});
feature("system instructions", async () =>
  p.checkKept((await ask({ instructions: SYSTEM, prompt: "Hello." })).text, "Hello."),
);
feature("history", async () => {
  const said = [["user", "First."], ["assistant", "Second."], ["user", "Third."]];
  const told = heard((await ask({ messages: said.map(([role, content]) => ({ role, content })) })).text);
  check(told.heard.length === 2 && told.answers[0] === "Second.", told);
});
feature("tools", async () => {
  const options = { instructions: SYSTEM, tools, stopWhen: isStepCount(5) };
  p.checkWeather((await ask({ ...options, prompt: "What is the weather in Bern?" })).text, "Bern");
  const stream = streamText({ model: baton(RECORDED), ...options, prompt: "What is the weather in Rome?" });
  p.checkWeather(await stream.text, "Rome");
});
feature("parallel calls", async () => {
  const prompt = "What is the weather in Bern and in Oslo?";
  const told = await ask({ instructions: SYSTEM, tools, stopWhen: isStepCount(5), prompt });
  check(told.steps[0].toolCalls.length === 2, told.steps);
  p.checkWeather(told.text, "Bern", "Oslo");
});
feature("structured, strict", async () => {
  for (const name of [RECORDED, REAL]) {
    const output = Output.object({ schema: Person });
    const told = await ask({ model: baton(name), output, prompt: "Who is Ada?", maxOutputTokens: 100 });
    check(Number.isInteger(told.output.born), told.output);
  }
});
feature("structured, not strict", async () => {
  const told = await ask({ output: Output.json(), prompt: "Say JSON." });
  check(typeof told.output === "object", told.output);
});
feature("tools and structured", async () => {
  const output = Output.object({ schema: Person });
  const told = await ask({ tools, output, stopWhen: isStepCount(5), prompt: "What is the weather in Bern?" });
  check(Number.isInteger(told.output.born) && told.steps.length === 2, told.steps.length);
});
feature("usage", async () => {
  const { usage } = await ask({ prompt: "count to 20" });
  check(usage.outputTokens === 20 && usage.inputTokens > 0, usage);
  const streamed = await streamText({ model: baton(RECORDED), prompt: "count to 20" }).usage;
  check(streamed.outputTokens === 20, streamed);
});
feature("stop", async () => {
  const { text } = await ask({ prompt: "count to 20", stopSequences: ["7"] });
  check(text.trim() === "1 2 3 4 5 6", text);
});
feature("penalties", () =>
  ask({ model: baton(REAL), prompt: "Say tree.", frequencyPenalty: 1, presencePenalty: 1, maxOutputTokens: 4 }),
);
feature("context overflow recognised", async () => {
  try {
    await ask({ model: baton(REAL), prompt: "word ".repeat(12_000) });
  } catch (error) {
    return check(error.statusCode === 400 && /maximum context length is/.test(error.message), String(error));
  }
  throw new Error("answered");
});
feature("bad key recognised", async () => {
  try {
    await ask({ model: provider("wrong")(RECORDED), prompt: "Hi." });
  } catch (error) {
    return check(error.statusCode === 401, String(error));
  }
  throw new Error("answered");
});
feature("cancel in mid-stream", async () => {
  const prompt = p.marker();
  const stop = new AbortController();
  const stream = streamText({ model: baton(RECORDED), prompt, abortSignal: stop.signal });
  let seen = 0;
  for await (const _ of stream.textStream) if (++seen === 5) stop.abort();
  await p.checkCut(prompt);
});
feature("legacy completions", async () => {
  const { text } = await ask({ model: baton.completionModel(REAL), prompt: "The capital of France is", maxOutputTokens: 5 });
  check(text, text);
});
feature("embeddings", async () => {
  const { embedding } = await embed({ model: baton.embeddingModel("embedding"), value: "word", maxRetries: 0 });
  check(embedding.length === 384, embedding);
});

await p.main();
