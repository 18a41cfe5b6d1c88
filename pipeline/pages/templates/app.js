// The page's state is its address: q, like, store, folder, since, until and the photo that is open. served: run and stores of the page.
const NAMES = ["q", "like", "store", "folder", "since", "until", "photo"], PAGE = 40;
const $ = (id) => document.getElementById(id), gallery = $("gallery"), status_ = $("status");
const local = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
const selection = makeSelection($("selection"), local);
let shown = [], searched = 0, generation = "", latest = 0, loading = false, timer, typing = false;
const state = () => Object.fromEntries(NAMES.map((name) => [name, new URLSearchParams(location.search).get(name) ?? ""]));
const photoAt = ({ id, version = "" }, size) => `/v1/photos/${id}/image?size=${size}&version=${version}`; // never another photo beside the scores of before
const ratio = ({ width, height }) => Math.min(Math.max(width && height ? width / height : 4 / 3, 0.4), 3.5); // as pages/photos.py

function go(changes, replace = false) {
  const parameters = new URLSearchParams(Object.entries({ ...state(), ...changes }).filter(([, value]) => value));
  history[replace ? "replaceState" : "pushState"](null, "", parameters.size ? `?${parameters}` : location.pathname);
}
async function ask(address, options, waits = () => false) {
  const response = await fetch(address, options);
  if (response.status === 503 && waits()) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * (response.headers.get("retry-after") ?? 1)));
    return ask(address, options, waits);
  }
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (answer.error) throw new Error(answer.error);
  return answer;
}
const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);

// ---- the list: the library, or the answers of a query, a page at a time
let listed = "";
const NONE_GOOD = " No good match: even the best is weak.";
const UNMARKED = " Weak matches may not be marked: the run has no calibration, here or on a node.";
const BY = { // what a score is, by what was asked with
  sentence: "A score says how well the regions of a photo and the words of the sentence fit. It ranks photos for this one query: scores of two queries do not compare, and a score is no probability. A match is weak where a sentence about another photo would score as much.",
  photo: "A score says how well the regions of a photo fit those of the photo to compare with. It ranks photos for that one photo, and is no probability.",
  both: "Photos are ranked by the sentence and by the photo, each alone. A score adds 1 / (60 + rank) of both, so that a photo comes first where both rank it high.",
};
async function refresh() { // the list that the address asks for, from its beginning
  const { photo, ...asked } = state(), mine = ++latest;
  listed = JSON.stringify(asked);
  gallery.ariaBusy = "true";
  $("query").value = typing ? $("query").value : asked.q;
  for (const name of ["store", "folder", "since", "until"]) if ($(name)) $(name).value = asked[name];
  $("captions").replaceChildren();
  showLike(asked.like);
  try {
    const started = performance.now(), answer = await page(asked, 0);
    if (mine !== latest) return; // somebody typed on
    if (generation && generation !== answer.generation) ask("/v1/index").then(renew);
    shown = []; searched = answer.searched; generation = answer.generation;
    gallery.replaceChildren();
    append(answer.hits);
    const query = asked.q || asked.like, time = Math.round(performance.now() - started);
    const unknown = Object.entries(answer.unknown ?? {}).map(([word, near]) => near ? `“${word}” (nearest: “${near}”)` : `“${word}”`);
    const note = (unknown.length ? ` Unknown to the run: ${unknown.join(", ")}.` : "") + (shown[0]?.weak ? NONE_GOOD : "");
    $("scores").hidden = !query;
    $("meaning").textContent = BY[asked.q && asked.like ? "both" : asked.like ? "photo" : "sentence"];
    const cut = searched > last(asked) ? `; the best ${last(asked).toLocaleString()} are listed` : "";
    status_.textContent = query ? `${searched.toLocaleString()} photos ranked in ${time} ms, best first${cut}.${note}`
      : `${searched.toLocaleString()} photos, newest first`;
    if (!searched) status_.textContent = "No photo passes the filters.";
    if (!answer.complete) status_.textContent += " Photos are missing: a store is not extracted to its end, or a node is not there.";
    if (asked.q && !answer.calibrated) status_.textContent += UNMARKED;
  } catch (error) {
    if (mine !== latest) return;
    shown = []; searched = 0; gallery.replaceChildren(); status_.textContent = error.message;
  }
  if (mine === latest) { gallery.ariaBusy = "false"; showPhoto(); }
  more();
}
function renew({ run, stores, photos }) { // another server may answer at this one's address
  if (JSON.stringify([run, stores]) !== JSON.stringify(served)) location.reload();
  else $("title").textContent = document.title = `${photos.toLocaleString("en")} photos in ${stores.join(", ")}`;
}
const last = ({ q, like }) => (q && like ? 1000 : Infinity); // result that a combined answer has
async function page({ q, like, ...filter }, offset) {
  const limit = Math.min(offset ? 5 * PAGE : PAGE, last({ q, like }) - offset);
  const body = { queries: q ? [q] : [], images: like ? [like] : [], combine: true, filter, offset, limit };
  const response = await ask("/v1/search", { method: "POST", body: JSON.stringify(body) });
  return { ...response.answers[0], complete: response.complete, calibrated: response.calibrated, generation: response.generation };
}
async function more() { // the next page, when the end of the list comes into view, also by the keys of an open photo
  const far = $("end").getBoundingClientRect().top > innerHeight + 600 && !(lightbox.isOpen && lightbox.index > shown.length - 10);
  if (loading || shown.length >= Math.min(searched, last(state())) || far) return;
  loading = true;
  const mine = latest, { photo, ...asked } = state();
  try {
    const answer = await page(asked, shown.length);
    if (mine === latest && answer.generation !== generation) { loading = false; refresh(); return; } // photos came or went: pages of two lists do not join
    if (mine === latest) { append(answer.hits); lightbox.update(); }
    if (!answer.hits.length) searched = shown.length;
  } catch (error) { status_.textContent = error.message; searched = shown.length; }
  loading = false;
  more();
}
function marks(photo) { // what a reader should know of it
  const changed = photo.changed ? "changed since it was extracted" : photo.changed === null ? "may have changed since it was extracted" : "";
  return [photo.weak ? "weak match" : "", photo.gone ? "its file is gone" : changed].filter(Boolean);
}
function append(photos) {
  for (const photo of photos) {
    shown.push(photo);
    const item = make("li", { className: photo.weak ? "weak" : "" }), button = make("button", { type: "button", className: "photo" });
    const label = photo.rank ? `${photo.rank} · ${photo.score.toFixed(3)}` : photo.date;
    item.style.setProperty("--ratio", ratio(photo));
    button.append(picture(photo, 480, { loading: "lazy", alt: `${photo.rank ? `Rank ${photo.rank}: ` : ""}${photo.name}` }));
    button.addEventListener("click", () => { go({ photo: photo.id }); showPhoto(); });
    const pick = make("input", { type: "checkbox", className: "pick", checked: selection.has(photo) });
    pick.setAttribute("aria-label", `Select ${photo.name}`);
    pick.addEventListener("change", () => selection.set(photo, pick.checked));
    const caption = make("div", { className: "caption", title: photo.name, textContent: `${label}${marks(photo).map((mark) => ` · ${mark}`).join("")} ` });
    caption.append(make("span", { className: "faint", textContent: photo.name.split("/").pop() }));
    item.append(pick, button, caption);
    gallery.append(item);
  }
}
function picture(photo, size, properties) {
  const image = make("img", { src: photoAt(photo, size), ...properties });
  image.addEventListener("error", () => image.replaceWith(make("span", { className: "missing faint", textContent: "cannot be shown, or changed since the search" })));
  return image;
}
function showLike(id) {
  if (!id) { $("like").replaceChildren(); return; }
  const stop = make("button", { type: "button", className: "icon text", textContent: "Remove", ariaLabel: "Stop comparing with this photo" });
  stop.addEventListener("click", () => { go({ like: "" }); refresh(); });
  $("like").replaceChildren(make("img", { src: photoAt({ id }, 320), alt: "The photo to compare with" }), make("span", { textContent: "Similar to this photo; a sentence narrows it." }), stop);
}

// ---- one photo, large
const lightbox = makeLightbox(fill, () => shown.length, () => {
  if (state().photo) go({ photo: "" });
  if (document.activeElement !== $("query")) gallery.children[lightbox.index]?.querySelector("button.photo").focus(); // where the eyes are
});
function showPhoto() { // the photo that the address names
  const index = shown.findIndex((photo) => photo.id === state().photo);
  if (index >= 0) lightbox.open(index);
  else if (lightbox.isOpen) lightbox.close();
}
function fill(index, heading, body) {
  const photo = shown[index], query = state().q, view = make("div"), actions = make("div", { className: "actions" });
  if (state().photo !== photo.id) go({ photo: photo.id }, true);
  heading.textContent = [photo.rank || "", photo.rank ? photo.score.toFixed(3) : "", ...marks(photo), photo.name].filter(Boolean).join(" · ");
  view.append(picture(photo, 1600, { className: "large", alt: photo.name }));
  const link = (text, href, download) => { const element = make("a", { className: "icon text", textContent: text, href }); if (download) element.download = ""; else { element.target = "_blank"; } return element; };
  const button = (text, action) => { const element = make("button", { type: "button", className: "icon text", textContent: text }); element.addEventListener("click", action); return element; };
  const path = photo.path || photo.name, original = `/v1/photos/${photo.id}/original?version=${photo.version}`;
  actions.append(
    button("Similar photos", () => { lightbox.close(); go({ like: photo.id, q: "", photo: "" }); refresh(); scrollTo(0, 0); }),
    link("Original", original), link("Download", original, true),
    button(photo.path ? "Copy path" : "Copy name", async (event) => { await navigator.clipboard.writeText(path); event.target.textContent = "Copied"; }),
    make("span", { className: "faint", textContent: [photo.date, photo.width ? `${photo.width} × ${photo.height}` : "", photo.store].filter(Boolean).join(" · ") }));
  const note = make("p", { className: "faint", textContent: path });
  more();
  body.replaceChildren(view, actions, note);
  if (query) ask(`/v1/photos/${photo.id}/explanation?query=${encodeURIComponent(query)}&version=${photo.version}`).then((data) => {
    if (view.isConnected) showAttention(view, data, photoAt(photo, 1600), `The photo ${photo.name}`);
  }).catch((error) => { note.textContent = `${path} · ${error.message}`; });
}

// ---- what people do
$("query").addEventListener("input", () => {
  const rested = !timer; // a first letter makes an entry of the history, those that follow change it
  clearTimeout(timer);
  typing = true;
  gallery.ariaBusy = "true"; // what is listed answers the words before
  setTimeout(() => { typing = false; }, 400);
  go({ q: $("query").value.trim(), photo: "" }, !rested);
  timer = setTimeout(refresh, 150);
});
$("query").addEventListener("change", () => { clearTimeout(timer); timer = undefined; typing = false; if (JSON.stringify((({ photo, ...asked }) => asked)(state())) !== listed) refresh(); });
document.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); $("query").dispatchEvent(new Event("change")); });
for (const name of ["store", "folder", "since", "until"]) $(name)?.addEventListener("change", () => { go({ [name]: $(name).value, photo: "" }); refresh(); });
addEventListener("popstate", () => { const { photo, ...asked } = state(); if (JSON.stringify(asked) === listed) showPhoto(); else refresh(); });
addEventListener("scroll", more, { passive: true });
addEventListener("resize", more);
$("upload")?.addEventListener("change", async (event) => {
  const file = event.target.files[0];
  if (!file) return;
  const mine = ++latest;
  gallery.replaceChildren(); shown = []; searched = 0; status_.textContent = `Looking at ${file.name} …`;
  const image = make("img", { src: URL.createObjectURL(file), alt: `Your photo ${file.name}` }), list = make("ol");
  image.addEventListener("error", () => image.remove()); // a kind that the browser does not show, such as HEIC
  const back = make("button", { type: "button", className: "icon text", textContent: "Back to the photos" });
  back.addEventListener("click", refresh);
  $("captions").replaceChildren(back, image, list);
  try {
    // The first photo waits until all captions are encoded, which may take longer than a request.
    const waits = () => { if (mine === latest) status_.textContent = `Looking at ${file.name} … the captions are read for the first time`; return mine === latest; };
    const answer = await ask("/v1/captions", { method: "POST", body: file }, waits);
    if (mine !== latest) return;
    list.append(...answer.captions.map((caption) => make("li", { textContent: `${caption.text} (${caption.score.toFixed(3)}${caption.weak ? " · weak match" : ""})` })));
    status_.textContent = `Captions for ${file.name}, best first${answer.captions[0]?.weak ? `.${NONE_GOOD}` : ""}`;
    if (!answer.complete) status_.textContent += " Captions are missing: a node is not there.";
    if (answer.captions.some((caption) => !caption.share)) status_.textContent += UNMARKED;
  } catch (error) { if (mine === latest) status_.textContent = `${file.name}: ${error.message}`; }
  event.target.value = "";
});
refresh();
