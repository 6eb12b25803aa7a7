/** Keeps the newest words in sight while the reader is there, and leaves one who has scrolled up alone. */

import { $ } from "/web/dom.js";

const AT_BOTTOM_PX = 60;

const scroll = $("scroll");
/** Whether the reader is at the newest words, and so wants to see more of them. */
let pinned = true;
let scrolling = false;
let lastTop = 0;

scroll.addEventListener("scroll", () => {
  const { scrollTop, scrollHeight, clientHeight } = scroll;
  // Words that came after our own scrolling leave the bottom behind; only the reader goes up.
  pinned = scrollHeight - scrollTop - clientHeight < AT_BOTTOM_PX || (pinned && scrollTop >= lastTop);
  lastTop = scrollTop;
  $("latest").hidden = pinned;
});
$("latest").addEventListener("click", toBottom);
new ResizeObserver(follow).observe(scroll);

/** Go along with what was added, if the reader is at the end. */
export function follow() {
  if (!pinned || scrolling) return;
  scrolling = true;
  requestAnimationFrame(() => {
    scrolling = false;
    if (pinned) scroll.scrollTop = scroll.scrollHeight;
  });
}

/** Go to the newest words, and stay with them. */
export function toBottom() {
  pinned = true;
  $("latest").hidden = true;
  follow();
}
