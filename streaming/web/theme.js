/**
 * Light or dark. Not a module: it runs before the page is painted, so that a dark page never flashes white.
 *
 * Until the person chooses, the page follows the system; a choice is remembered by this browser, and is dropped once it
 * is what the system says anyway.
 */
"use strict";

(() => {
  const KEY = "baton.theme";
  const COLOURS = { light: "#fbfaf7", dark: "#131517" };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const systems = () => (system.matches ? "dark" : "light");

  function chosen() {
    try {
      const theme = localStorage.getItem(KEY);
      return theme in COLOURS ? theme : null;
    } catch {
      return null; // this browser keeps nothing
    }
  }

  function show(theme = chosen() ?? systems()) {
    document.documentElement.dataset.theme = theme;
    for (const meta of document.querySelectorAll("meta[name=theme-color]")) meta.content = COLOURS[theme];
    const button = document.getElementById("theme");
    if (button) button.ariaLabel = button.title = theme === "dark" ? "Use light colours" : "Use dark colours";
  }

  function toggle() {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try {
      if (theme === systems()) localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, theme);
    } catch {
      // Then it is forgotten with the page.
    }
    show(theme);
  }

  show();
  system.addEventListener("change", () => show());
  addEventListener("storage", (event) => event.key === KEY && show());
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", toggle);
  });
})();
