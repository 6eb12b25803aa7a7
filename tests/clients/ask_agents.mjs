// openai-agents for JavaScript: agents on the chat completions model, a handoff, and a realtime session in text.

import {
  Agent,
  OpenAIChatCompletionsModel,
  Runner,
  handoff,
  setTracingDisabled,
  tool,
  user,
} from "@openai/agents";
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool as realtimeTool } from "@openai/agents/realtime";
import OpenAI from "openai";
import { z } from "zod";
import * as p from "./probe.mjs";

const { RECORDED, REAL, SYSTEM, check, feature, heard } = p;
setTracingDisabled(true);
const model = (name = RECORDED, apiKey = p.KEY) =>
  new OpenAIChatCompletionsModel(new OpenAI({ baseURL: p.URL_, apiKey, maxRetries: 0 }), name);
const weather = tool({
  name: "get_weather",
  description: "Say what the weather is.",
  parameters: z.object({ city: z.string() }),
  execute: async (input) => p.getWeather(input),
});
const agent = (options = {}) => new Agent({ name: "Quill", instructions: SYSTEM, model: model(), ...options });
const runner = new Runner({ tracingDisabled: true });
const say = async (made, words) => (await runner.run(made, words)).finalOutput;
const Person = z.object({ born: z.number().int(), alive: z.boolean() });

feature("chat", async () => {
  const told = heard(await say(agent(), "Say something."));
  check(told.heard[0] === "Say something.", told);
});
feature("stream", async () => {
  const stream = await runner.run(agent(), "count to 20", { stream: true });
  const pieces = [];
  for await (const piece of stream.toTextStream()) pieces.push(piece);
  check(pieces.length > 10 && pieces.join("").trim().endsWith("20"), pieces);
});
feature("system instructions", async () => p.checkKept(await say(agent(), "Hello."), "Hello."));
feature("history", async () => {
  const first = await runner.run(agent(), "First.");
  p.checkKept(await say(agent(), [...first.history, user("Second.")]), "First.", "Second.");
});
feature("tools", async () =>
  p.checkWeather(await say(agent({ tools: [weather] }), "What is the weather in Bern?"), "Bern"),
);
feature("parallel calls", async () =>
  p.checkWeather(await say(agent({ tools: [weather] }), "What is the weather in Bern and in Oslo?"), "Bern", "Oslo"),
);
feature("handoff", async () => {
  const other = agent({ name: "Weather", tools: [weather] });
  const first = agent({ name: "Desk", instructions: "Hand over what is asked.", handoffs: [handoff(other)] });
  const told = await runner.run(first, "What is the weather in Bern?");
  check(told.lastAgent.name === "Weather", told.lastAgent.name);
  p.checkWeather(told.finalOutput, "Bern");
});
feature("structured, strict", async () => {
  for (const name of [RECORDED, REAL]) {
    const made = agent({ model: model(name), outputType: Person, modelSettings: { maxTokens: 100 } });
    check(Number.isInteger((await say(made, "Who is Ada?")).born), name);
  }
});
feature("tools and structured", async () => {
  const told = await runner.run(agent({ tools: [weather], outputType: Person }), "What is the weather in Bern?");
  check(Number.isInteger(told.finalOutput.born), told.finalOutput);
  check(JSON.stringify(told.history).includes(p.getWeather({ city: "Bern" })), told.history);
});
feature("usage", async () => {
  const { usage } = (await runner.run(agent(), "count to 20")).state;
  check(usage.outputTokens === 20 && usage.inputTokens > 0, usage);
});
feature("penalties", async () => {
  const modelSettings = { frequencyPenalty: 1, presencePenalty: 1, maxTokens: 4 };
  await say(agent({ model: model(REAL), modelSettings }), "Say tree.");
});
feature("context overflow recognised", async () => {
  try {
    await say(agent({ model: model(REAL) }), "word ".repeat(12_000));
  } catch (error) {
    return check(error.code === "context_length_exceeded", String(error));
  }
  throw new Error("answered");
});
feature("bad key recognised", async () => {
  try {
    await say(agent({ model: model(RECORDED, "wrong") }), "Hi.");
  } catch (error) {
    return check(error instanceof OpenAI.AuthenticationError || error.status === 401, String(error));
  }
  throw new Error("answered");
});
feature("cancel in mid-stream", async () => {
  const prompt = p.marker();
  const stop = new AbortController();
  const stream = await runner.run(agent(), prompt, { stream: true, signal: stop.signal });
  let seen = 0;
  try {
    for await (const _ of stream.toTextStream()) if (++seen === 5) stop.abort();
  } catch {
    // Some versions raise what was asked for.
  }
  await p.checkCut(prompt);
});

// A realtime session

const realtimeWeather = realtimeTool({
  name: "get_weather",
  description: "Say what the weather is.",
  parameters: z.object({ city: z.string() }),
  execute: async (input) => p.getWeather(input),
});

async function converse(made, ...said) {
  const url = `${p.URL_.replace("http", "ws")}/realtime?model=${RECORDED}`;
  const transport = new OpenAIRealtimeWebSocket({ url, useInsecureApiKey: true });
  const session = new RealtimeSession(made, {
    transport,
    model: RECORDED,
    config: { outputModalities: ["text"] },
    tracingDisabled: true,
  });
  let failed;
  session.on("error", (error) => (failed ??= error));
  await session.connect({ apiKey: p.KEY, url });
  let text;
  try {
    for (const words of said) {
      text = "";
      await new Promise((resolve, reject) => {
        const look = (event) => {
          if (event.type === "error") reject(new Error(JSON.stringify(event)));
          if (event.type === "response.output_text.delta") text += event.delta;
          if (event.type === "response.done" && event.response.status !== "completed")
            reject(new Error(JSON.stringify(event.response)));
          if (event.type === "response.done" && text) {
            transport.off("*", look);
            resolve();
          }
        };
        transport.on("*", look);
        session.sendMessage(words);
      });
    }
  } finally {
    session.close();
  }
  if (failed) throw new Error(JSON.stringify(failed));
  return text;
}

feature("realtime: text", async () => {
  const text = await converse(new RealtimeAgent({ name: "Quill" }), "count to 20");
  check(text.trim().endsWith("20"), text);
});
feature("realtime: instructions", async () =>
  p.checkKept(await converse(new RealtimeAgent({ name: "Quill", instructions: SYSTEM }), "Hello."), "Hello."),
);
feature("realtime: tools", async () => {
  const made = new RealtimeAgent({ name: "Quill", instructions: SYSTEM, tools: [realtimeWeather] });
  p.checkWeather(await converse(made, "What is the weather in Bern?"), "Bern");
});
feature("realtime: history", async () => {
  const told = heard(await converse(new RealtimeAgent({ name: "Quill" }), "First.", "Second."));
  check(told.heard.length === 2 && told.answers.length === 1, told);
});
feature("realtime: handoff", async () => {
  const other = new RealtimeAgent({ name: "Weather", instructions: SYSTEM, tools: [realtimeWeather] });
  const first = new RealtimeAgent({ name: "Desk", instructions: "Hand over what is asked.", handoffs: [other] });
  p.checkWeather(await converse(first, "What is the weather in Bern?"), "Bern");
});

await p.main();
