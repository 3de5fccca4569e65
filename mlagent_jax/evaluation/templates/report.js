"use strict";
// Theme, navigation between report and browser, keyboard help.
const $ = (id) => document.getElementById(id);

function toggleTheme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

function isBrowsing() {
  return location.hash.startsWith("#trajectories");
}

function toggleBrowser() {
  location.hash = isBrowsing() ? "#results" : "#trajectories";
}

function showView() {
  const browsing = isBrowsing();
  $("report").hidden = browsing;
  $("browser").hidden = !browsing;
  $("to-browser").setAttribute("aria-current", browsing ? "page" : "false");
  if (browsing) {
    window.scrollTo(0, 0);
    openBrowser();
  } else {
    document.querySelector(location.hash || "#report")?.scrollIntoView();
  }
}

$("theme").addEventListener("click", toggleTheme);
$("help-button").addEventListener("click", () => $("help").showModal());
$("help").addEventListener("click", (event) => {
  if (event.target === $("help")) $("help").close();
});
window.addEventListener("hashchange", showView);
window.addEventListener("DOMContentLoaded", showView);
