// Photos that are ticked, and what can be done with their names. Kept while queries change.
function makeSelection(bar, local) {
  const chosen = new Map(), count = document.createElement("span");
  count.setAttribute("aria-live", "polite");
  const names = () => [...chosen.values()].map((photo) => (local && photo.path) || photo.name);
  const save = (text, name, type) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const button = (text, action) => {
    const element = Object.assign(document.createElement("button"), { type: "button", className: "icon text", textContent: text });
    element.addEventListener("click", action);
    return element;
  };
  bar.append(count,
    button("Copy names", () => navigator.clipboard.writeText(names().join("\n"))),
    button("Save list", () => save(names().join("\n") + "\n", "photos.txt", "text/plain")),
    button("Save JSON", () => save(JSON.stringify([...chosen.values()], null, 1), "photos.json", "application/json")),
    button("Clear", () => { chosen.clear(); changed(); document.querySelectorAll(".pick").forEach((box) => { box.checked = false; }); }));
  function changed() {
    bar.hidden = !chosen.size;
    document.body.classList.toggle("picking", chosen.size > 0);
    count.textContent = `${chosen.size} selected`;
  }
  return {
    has: (photo) => chosen.has(photo.id),
    set: (photo, on) => { if (on) chosen.set(photo.id, photo); else chosen.delete(photo.id); changed(); },
  };
}
