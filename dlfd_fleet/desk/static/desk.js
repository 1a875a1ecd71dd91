// What is live on a page: an element with data-live is fetched again, as long as the answer says that it goes on.
"use strict";
const SECONDS = 2;
async function renew(part) {
  const said = part.parentElement.querySelector("[data-lost]");
  let goesOn = true;
  try {
    const answer = await fetch(part.dataset.live, { redirect: "error", cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    goesOn = answer.headers.get("X-Goes-On") === "yes";
    const text = await answer.text();
    if (text !== part.dataset.last && !part.contains(document.activeElement)) {
      part.innerHTML = text;
      part.dataset.last = text;
    }
    if (said) said.hidden = true;
  } catch {
    if (said) said.hidden = false;
  }
  if (goesOn) setTimeout(renew, SECONDS * 1000, part);
}
document.querySelectorAll("[data-live]").forEach((part) => setTimeout(renew, SECONDS * 1000, part));
