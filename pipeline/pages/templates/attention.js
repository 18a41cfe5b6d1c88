// Shows one photo and one sentence in a container: point at a word and the photo is dimmed where the word does not look,
// point at the photo and each word shows how much it looks there.
// data: made by pipeline.pages.explanation.attention_data; photo: its address.
const FUNCTION_WORDS = new Set(
  "a an the this that these those and or but of in on at by to from with for as into over under near is are was were be it its his her their there while".split(" "));
function showAttention(container, data, photo, alt, note) {
  const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);
  const drawing = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const words = make("div", { className: "words" }), stage = make("div", { className: "stage" }), canvas = make("canvas");
  note ??= make("p", { className: "note faint" });
  note.setAttribute("aria-live", "polite");
  words.setAttribute("role", "group");
  words.setAttribute("aria-label", "What each word looks at");
  stage.style.setProperty("--ratio", data.width / data.height);
  stage.style.setProperty("--width", data.width);
  const svg = drawing("svg", { viewBox: `0 0 ${data.width} ${data.height}`, preserveAspectRatio: "none", role: "presentation" });
  stage.append(make("img", { src: photo, alt }), canvas, svg);
  container.replaceChildren(words, ...(note.parentNode ? [] : [note]), stage);

  const percent = (value) => `${Math.round(100 * value)}%`;
  const nameOf = (region) => `the marked ${data.region}${data.names[region] ? ` (${data.names[region]})` : ""}`;
  const dim = attentionPainter(canvas, data);
  const rects = data.boxes.map(([x1, y1, x2, y2], region) => {
    const rect = drawing("rect", { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) });
    rect.addEventListener("mousemove", () => showRegion(region));
    return rect;
  });
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  // Small regions lie above large ones, so that each can be pointed at.
  rects.map((_, region) => region).sort((a, b) => area(data.boxes[b]) - area(data.boxes[a])).forEach((region) => svg.append(rects[region]));

  const largest = Math.max(...data.shares, 1e-12);
  const buttons = data.words.map((text, word) => {
    const button = make("button", { type: "button", title: `${percent(data.shares[word])} of what the words add to the score` });
    const bar = make("span", { className: "share" }), filled = make("i");
    filled.style.width = `${(100 * Math.max(0, data.shares[word])) / largest}%`;
    bar.append(filled);
    button.append(text, bar);
    for (const event of ["mouseenter", "focus", "click"]) button.addEventListener(event, () => showWord(word));
    return button;
  });
  words.append(...buttons);

  function reset() {
    for (const element of [...rects, ...buttons]) { element.classList.remove("on"); element.style.removeProperty("--weight"); }
  }
  function showWord(word) {
    reset();
    dim(data.attention[word]);
    const region = data.strongest[word];
    buttons[word].classList.add("on");
    rects[region].classList.add("on");
    note.textContent = `“${data.words[word]}” looks most at ${nameOf(region)} (${percent(data.attention[word][region])}); `
      + `it makes ${percent(data.shares[word])} of what the words add to the score`;
  }
  function showRegion(region) {
    reset();
    dim(null);
    rects[region].classList.add("on");
    const weights = data.attention.map((row) => row[region]), most = Math.max(...weights, 1e-12);
    buttons.forEach((button, word) => button.style.setProperty("--weight", weights[word] / most));
    const best = weights.indexOf(Math.max(...weights));
    note.textContent = `In ${nameOf(region)} “${data.words[best]}” looks most (${percent(Math.max(...weights))})`;
  }
  stage.addEventListener("mouseleave", () => { reset(); dim(null); });
  const content = data.words.map((word, index) => (FUNCTION_WORDS.has(word.toLowerCase()) ? -1 : data.shares[index]));
  if (data.words.length) showWord(content.indexOf(Math.max(...content)));
}

// Paints attention onto a canvas over the photo, as pipeline.pages.explanation.dimmed_photos does: linear in the attention,
// from 40% brightness at none to 100% at `full` times the uniform attention. Small regions count more than large ones.
function attentionPainter(canvas, data) {
  const scale = 128 / Math.max(data.width, data.height), context = canvas.getContext("2d");
  const width = (canvas.width = Math.max(1, Math.round(data.width * scale)));
  const height = (canvas.height = Math.max(1, Math.round(data.height * scale)));
  const clip = (value) => Math.min(1, Math.max(0, value));
  const along = (low, high, size) => { // 1 inside, 0 outside, a slope between; no slope at the photo's border
    const fade = data.fade * Math.max(high - low, 1);
    low = low <= 1 ? -Infinity : low; high = high >= size - 1 ? Infinity : high;
    return Float32Array.from({ length: size }, (_, i) => clip((i + 0.5 - low) / fade + 0.5) * clip((high - i - 0.5) / fade + 0.5));
  };
  const regions = data.boxes.map((box) => {
    const [x1, y1, x2, y2] = box.map((value) => value * scale);
    return [along(x1, x2, width), along(y1, y2, height), 1 / (Math.max(x2 - x1, 1) * Math.max(y2 - y1, 1))];
  });
  return (weights) => {
    if (!weights) { context.clearRect(0, 0, width, height); return; }
    const picture = context.createImageData(width, height);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      let inside = 0, total = 0, sum = 0;
      regions.forEach(([alongX, alongY, density], region) => {
        const here = alongX[x] * alongY[y];
        inside += here; total += here * density; sum += here * density * weights[region];
      });
      const map = (Math.min(1, inside) * sum) / Math.max(total, 1e-12) / data.uniform / data.full;
      picture.data[4 * (y * width + x) + 3] = 255 * (1 - data.darkest) * (1 - Math.min(1, map));
    }
    context.putImageData(picture, 0, 0);
  };
}
