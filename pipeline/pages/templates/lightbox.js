// A dialog that shows one item of a list, large. Arrow keys and the buttons move, Esc and the cross close.
// fill(index, heading, body) writes an item into it; count() says how many there are; closed() is called afterwards.
function makeLightbox(fill, count, closed = () => {}) {
  const dialog = document.createElement("dialog");
  dialog.className = "lightbox";
  dialog.innerHTML = `<header><h2 id="lightbox-title"></h2><button type="button" class="icon" aria-label="Previous photo">‹</button>
    <button type="button" class="icon" aria-label="Next photo">›</button><button type="button" class="icon" aria-label="Close">✕</button></header><div class="body"></div>`;
  dialog.setAttribute("aria-labelledby", "lightbox-title");
  document.body.append(dialog);
  const heading = dialog.querySelector("h2"), body = dialog.querySelector(".body");
  const [previous, next, close] = dialog.querySelectorAll("button");
  let current = 0;
  function open(index) {
    if (index < 0 || index >= count()) return;
    current = index;
    update();
    fill(index, heading, body);
    if (!dialog.open) { dialog.showModal(); close.focus(); }
    dialog.scrollTop = 0;
  }
  function update() { // after the list became longer
    previous.disabled = current === 0;
    next.disabled = current >= count() - 1;
  }
  previous.addEventListener("click", () => open(current - 1));
  next.addEventListener("click", () => open(current + 1));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside the dialog
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") open(current - 1);
    else if (event.key === "ArrowRight") open(current + 1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => { body.replaceChildren(); closed(); });
  return { open, update, close: () => dialog.close(), get index() { return current; }, get isOpen() { return dialog.open; } };
}
