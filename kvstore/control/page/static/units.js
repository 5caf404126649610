// Numbers as people read them: three digits that matter, and a unit.

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
export const TIER_NAMES = { HBM: "HBM", DRAM: "DRAM", NVME: "NVMe" };
const DECIMAL = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"];

function scaled(value, step, units) {
  let at = 0;
  while (value >= step * 0.9995 && at < units.length - 1) {
    value /= step;
    at += 1;
  }
  const digits = at === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[at]}`;
}

export const bytes = (count) => scaled(count, 1024, BINARY);
export const rate = (bytesPerS) => scaled(bytesPerS, 1000, DECIMAL);
export const count = (number) => Math.round(number).toLocaleString("en-US");
export const percent = (part) => `${(100 * part).toFixed(part > 0 && part < 0.0995 ? 1 : 0)} %`;
export const perSecond = (number) => `${number >= 100 ? count(number) : number.toFixed(number >= 10 ? 1 : 2)}/s`;

export function seconds(ms) {
  if (ms < 950) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return `${(s / 3600).toFixed(1)} h`;
}

export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

// A clock where it is today, else with its day.
export function moment(ms) {
  const then = new Date(ms);
  if (then.toDateString() === new Date().toDateString()) return clock(ms);
  return then.toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
}

export const plural = (number, word, many = `${word}s`) => `${count(number)} ${number === 1 ? word : many}`;
