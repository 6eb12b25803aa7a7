// What the scripts of the Node clients share. A script registers features and ends with `await main()`, which prints a
// line of JSON for each; probe.py is its twin.

export const URL_ = process.env.BATON_CLIENTS_URL;
export const KEY = process.env.BATON_CLIENTS_KEY;
export const RECORDED = "recorded"; // the model whose answers repeat what it was sent
export const REAL = "real"; // SmolLM2-135M
export const SYSTEM = "The password is swordfish.";
const FEATURE_MS = 120_000;

const features = [];
export const feature = (name, run) => features.push([name, run]);

export class NotOffered extends Error {}

export const getWeather = ({ city }) => `${city} is at ${city.length} degrees.`;

export function check(holds, told) {
  if (!holds) throw new Error(`seen: ${JSON.stringify(told)}`.slice(0, 400));
}

export const heard = (text) => JSON.parse(text.slice(text.indexOf("{")));

export function checkKept(text, ...asked) {
  const told = heard(text);
  check(told.system.some((s) => s.includes(SYSTEM)), told);
  for (const words of asked) check(told.heard.some((h) => h.includes(words)), told);
}

export function checkWeather(text, ...cities) {
  const told = heard(text);
  check(told.system.some((s) => s.includes(SYSTEM)), told);
  for (const city of cities) check(told.results.some((r) => r.includes(getWeather({ city }))), told);
}

export const marker = () => `slowly count to 400 (${crypto.randomUUID()})`;

export async function checkCut(prompt) {
  for (let i = 0; i < 100; i++) {
    const told = await (await fetch(`${process.env.BATON_CLIENTS_UPSTREAM}/recorded`)).json();
    if (told.cut.includes(prompt)) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("the answer ran on although the client had gone");
}

export async function notOffered(run) {
  try {
    await run();
  } catch (error) {
    if (/offer|serve/i.test(String(error?.message))) throw new NotOffered(error.message);
    throw error;
  }
}

export async function main() {
  for (const [name, run] of features) {
    const began = Date.now();
    const line = { feature: name, cell: "works", reason: "" };
    let timer;
    const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("took too long")), FEATURE_MS)));
    try {
      await Promise.race([run(), late]);
    } catch (error) {
      line.cell = error instanceof NotOffered || /not offered/.test(String(error?.message)) ? "not offered" : "FAILS";
      line.reason = String(error?.stack ?? error).replace(/\s+/g, " ").slice(0, 600);
    }
    clearTimeout(timer);
    console.log(JSON.stringify({ ...line, seconds: (Date.now() - began) / 1000 }));
  }
  process.exit(0);
}
