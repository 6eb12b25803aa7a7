// OpenAI's own client for Node, over REST and over the realtime websocket.

import { connect } from "node:net";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import * as p from "./probe.mjs";

const { RECORDED, REAL, SYSTEM, check, feature, heard } = p;
const client = new OpenAI({ baseURL: p.URL_, apiKey: p.KEY, maxRetries: 0 });
const user = (content) => ({ role: "user", content });
const ask = (messages, options = {}) => client.chat.completions.create({ model: RECORDED, messages, ...options });
const text = async (...args) => (await ask(...args)).choices[0].message.content;
const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Say what the weather is.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const Person = z.object({ name: z.enum(["Ada", "Grace"]), born: z.number().int(), alive: z.boolean() });

feature("chat", async () => {
  const told = heard(await text([user("Say something.")]));
  check(told.heard[0] === "Say something.", told);
});
feature("stream", async () => {
  const pieces = [];
  for await (const chunk of await ask([user("count to 20")], { stream: true }))
    if (chunk.choices.length) pieces.push(chunk.choices[0].delta.content ?? "");
  check(pieces.length > 10 && pieces.join("").trim().split(" ").length === 20, pieces);
});
feature("system instructions", async () => {
  p.checkKept(await text([{ role: "system", content: SYSTEM }, user("Hello.")]), "Hello.");
  p.checkKept(await text([{ role: "developer", content: SYSTEM }, user("Hello.")]), "Hello.");
});
feature("history", async () => {
  const told = heard(await text([user("First."), { role: "assistant", content: "Second." }, user("Third.")]));
  check(told.heard.length === 2 && told.answers[0] === "Second.", told);
});
const loop = (question, options) =>
  client.chat.completions
    .runTools({
      model: RECORDED,
      messages: [{ role: "system", content: SYSTEM }, user(question)],
      tools: [{ ...WEATHER, function: { ...WEATHER.function, parse: JSON.parse, function: p.getWeather } }],
      ...options,
    })
    .finalContent();
feature("tools", async () => p.checkWeather(await loop("What is the weather in Bern?"), "Bern"));
feature("parallel calls", async () => {
  const said = await loop("What is the weather in Bern and in Oslo?", { stream: true });
  check(heard(said).answers.length === 1, said); // one message with both calls
  p.checkWeather(said, "Bern", "Oslo");
});
feature("structured, strict", async () => {
  for (const model of [REAL, RECORDED]) {
    const answer = await client.chat.completions.parse({
      model,
      messages: [user("Who is Ada?")],
      response_format: zodResponseFormat(Person, "person"),
      max_tokens: 100,
    });
    check(answer.choices[0].message.parsed, answer);
  }
});
feature("structured, not strict", async () => {
  const said = await text([user("Say JSON.")], { response_format: { type: "json_object" } });
  check(typeof JSON.parse(said) === "object", said);
});
feature("tools and structured", async () => {
  const answer = await client.chat.completions.parse({
    model: RECORDED,
    messages: [user("What is the weather in Bern?")],
    response_format: zodResponseFormat(Person, "person"),
    tools: [{ ...WEATHER, function: { ...WEATHER.function, strict: true, parameters: { ...WEATHER.function.parameters, additionalProperties: false } } }],
  });
  check(answer.choices[0].message.tool_calls.length === 1, answer);
});
feature("usage", async () => {
  const { usage } = await ask([user("count to 20")]);
  check(usage.completion_tokens === 20 && usage.prompt_tokens > 0, usage);
});
feature("stop", async () => {
  const said = await text([user("count to 20")], { stop: ["7"] });
  check(said.trim() === "1 2 3 4 5 6", said);
});
feature("n", async () => {
  const answer = await ask([user("Name a colour.")], { model: REAL, n: 2, max_tokens: 8 });
  check(answer.choices.length === 2, answer);
});
feature("logprobs", async () => {
  const answer = await ask([user("Name a colour.")], { model: REAL, logprobs: true, top_logprobs: 3, max_tokens: 4 });
  check(answer.choices[0].logprobs.content[0].top_logprobs.length === 3, answer);
});
feature("penalties", async () => {
  await ask([user("Say tree.")], { model: REAL, max_tokens: 4, frequency_penalty: 1, presence_penalty: 1 });
});
feature("context overflow recognised", async () => {
  try {
    await ask([user("word ".repeat(12_000))], { model: REAL });
  } catch (error) {
    return check(error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded", error.message);
  }
  throw new Error("answered");
});
feature("bad key recognised", async () => {
  try {
    await client.withOptions({ apiKey: "wrong" }).models.list();
  } catch (error) {
    return check(error instanceof OpenAI.AuthenticationError, error.message);
  }
  throw new Error("answered");
});
feature("cancel in mid-stream", async () => {
  const prompt = p.marker();
  const stream = await ask([user(prompt)], { stream: true });
  let seen = 0;
  for await (const _ of stream) if (++seen === 5) break;
  await p.checkCut(prompt);
});
feature("models", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  check(names.includes(RECORDED), names);
});
feature("legacy completions", async () => {
  const answer = await client.completions.create({ model: REAL, prompt: "The capital of France is", max_tokens: 5 });
  check(answer.choices[0].text, answer);
});
feature("embeddings", async () => {
  const { data } = await client.embeddings.create({ model: "embedding", input: "word" });
  check(data[0].embedding.length === 384, data);
});
feature("responses", () => p.notOffered(() => client.responses.create({ model: REAL, input: "word" })));

// The realtime websocket

const session = {
  type: "realtime",
  output_modalities: ["text"],
  instructions: SYSTEM,
  tools: [{ type: "function", ...WEATHER.function }],
};

async function connected(run, update) {
  // This client insists on wss:, so the server would need a certificate; here it is given a plain connection instead.
  const { hostname, port } = new URL(p.URL_);
  const createConnection = () => connect(Number(port), hostname);
  const rt = new OpenAIRealtimeWS({ model: RECORDED, options: { createConnection } }, client);
  await new Promise((resolve, reject) => {
    rt.socket.on("open", resolve);
    rt.once("error", reject);
  });
  if (update) rt.send({ type: "session.update", session });
  const respond = () =>
    new Promise((resolve, reject) => {
      let said = "";
      const heardDelta = (event) => (said += event.delta);
      rt.on("response.output_text.delta", heardDelta);
      rt.once("error", reject);
      rt.once("response.done", (event) => {
        rt.off("response.output_text.delta", heardDelta);
        resolve([said, event.response.output.filter((item) => item.type === "function_call")]);
      });
      rt.send({ type: "response.create" });
    });
  const say = (words) =>
    rt.send({
      type: "conversation.item.create",
      item: { type: "message", role: "user", content: [{ type: "input_text", text: words }] },
    });
  try {
    await run({ rt, say, respond });
  } finally {
    rt.close();
  }
}

feature("realtime: text", () =>
  connected(async ({ say, respond }) => {
    say("count to 20");
    const [said] = await respond();
    check(said.trim().endsWith("20"), said);
  }),
);
feature("realtime: instructions", () =>
  connected(async ({ say, respond }) => {
    say("Hello.");
    p.checkKept((await respond())[0], "Hello.");
  }, true),
);
feature("realtime: tools", () =>
  connected(async ({ rt, say, respond }) => {
    say("What is the weather in Bern?");
    const [, [call]] = await respond();
    const output = p.getWeather(JSON.parse(call.arguments));
    rt.send({
      type: "conversation.item.create",
      item: { type: "function_call_output", call_id: call.call_id, output },
    });
    p.checkWeather((await respond())[0], "Bern");
  }, true),
);
feature("realtime: history", () =>
  connected(async ({ say, respond }) => {
    say("First.");
    await respond();
    say("Second.");
    const told = heard((await respond())[0]);
    check(told.heard.length === 2 && told.answers.length === 1, told);
  }),
);

await p.main();
