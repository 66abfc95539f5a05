// The gallery's behaviour. Its data are one block of JSON, its texts go into text nodes, never into markup.
'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const LEVELS = 256;
const VIEWS = [['overlay', 'Overlay'], ['mask', 'Mask'], ['alone', 'Map alone']];
const state = {image: 0, first: 0, second: -1, method: 0, view: 'overlay', opacity: 1};

function element(name, attributes, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

// --- maps ---------------------------------------------------------------------------------------

function decode(map) {
  if (!map.values) {
    const bytes = Uint8Array.from(atob(map.data), letter => letter.charCodeAt(0));
    const numbers = new DataView(bytes.buffer);
    map.values = Float64Array.from({length: map.h * map.w},
      (_, cell) => map.low + (map.high - map.low) * numbers.getUint16(2 * cell, true) / 65535);
  }
  return map;
}

// what is shown of an image: its values on the grid, the label of its bar, whether it is signed
function asked(image, choice) {
  const method = data.methods[choice.method], maps = image.maps[choice.method];
  const single = method.pair || !method.per_class;
  const first = decode(maps[single ? 0 : choice.first]);
  if (single || choice.second < 0)
    return {...first, label: method.label, signed: method.signed};
  const second = decode(maps[choice.second]);
  return {...first, values: first.values.map((value, cell) => value - second.values[cell]), label: method.difference, signed: true};
}

// as pictures.Scale: to the maximum, of fine maps to a percentile; a signed map's zero is in the middle
function scaleOf(map) {
  const sizes = Float64Array.from(map.values, map.signed ? Math.abs : value => value).sort(), last = sizes.length - 1;
  const top = sizes.length <= data.fine ? sizes[last] : sizes[Math.ceil(data.percentile / 100 * last)];
  const low = map.signed ? -top : Math.min(0, map.values.reduce((least, value) => Math.min(least, value)));
  if (!(top > low)) return {low: map.signed ? -1 : low, high: low + 1, cut: false};
  return {low, high: top, cut: sizes[last] > top};
}

// bilinear, pixel centres at halves, as the evaluations enlarge maps
function taps(length, size) {
  return Array.from({length: size}, (_, pixel) => {
    const place = Math.max(0, (pixel + 0.5) * length / size - 0.5), low = Math.min(Math.floor(place), length - 1);
    return [low, Math.min(low + 1, length - 1), place - low];
  });
}

function enlarge(map, width, height) {
  const rows = taps(map.h, height), columns = taps(map.w, width), values = new Float64Array(width * height);
  for (let y = 0; y < height; y++) {
    const [above, below, down] = rows[y];
    for (let x = 0; x < width; x++) {
      const [left, right, across] = columns[x], v = map.values;
      const top = v[above * map.w + left] * (1 - across) + v[above * map.w + right] * across;
      const bottom = v[below * map.w + left] * (1 - across) + v[below * map.w + right] * across;
      values[y * width + x] = top * (1 - down) + bottom * down;
    }
  }
  return values;
}

// the colour and the alpha of each level: [r, g, b, a] * 256
function levelsOf(view, signed) {
  const colours = new Uint8ClampedArray(4 * LEVELS);
  const palette = data.palettes[signed ? view === 'overlay' ? 'ends' : 'signed' : 'sequential'];
  for (let level = 0; level < LEVELS; level++) {
    const share = level / (LEVELS - 1), distance = signed ? Math.abs(2 * share - 1) : share;
    const kept = signed ? Math.max(0, 2 * share - 1) : share;
    const alpha = {overlay: data.strength * distance, mask: (1 - data.darkest) * (1 - kept), alone: 1}[view];
    for (let colour = 0; colour < 3; colour++)
      colours[4 * level + colour] = view === 'mask' ? 0 : palette[3 * level + colour];
    colours[4 * level + 3] = Math.round(255 * alpha);
  }
  return colours;
}

function paint(canvas, map, width, height, view) {
  canvas.width = width;
  canvas.height = height;
  const scale = scaleOf(map), values = enlarge(map, width, height), colours = levelsOf(view, map.signed);
  const context = canvas.getContext('2d'), shown = context.createImageData(width, height);
  for (let pixel = 0; pixel < values.length; pixel++) {
    const share = (values[pixel] - scale.low) / (scale.high - scale.low);
    const level = Math.min(LEVELS - 1, Math.max(0, Math.round(share * (LEVELS - 1))));
    shown.data.set(colours.subarray(4 * level, 4 * level + 4), 4 * pixel);
  }
  context.putImageData(shown, 0, 0);
  return {scale, values};
}

// --- the colour bar -----------------------------------------------------------------------------

function ticksOf({low, high}) {
  const rough = (high - low) / 4, power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 2.5, 5, 10].map(factor => factor * power).find(width => width >= rough * 0.999);
  const ticks = [];
  for (let count = Math.ceil(low / step - 1e-9); count * step <= high * (1 + 1e-9) + 1e-300; count++) ticks.push(count * step);
  const largest = Math.max(Math.abs(low), Math.abs(high));
  const exponent = largest >= 0.01 && largest < 10000 ? 0 : Math.floor(Math.log10(largest));
  return {ticks, exponent};
}

const number = value => String(Number(value.toPrecision(4))).replace('-', '−');
const superscript = power => String(power).replace(/./g, letter => letter === '-' ? '⁻' : '⁰¹²³⁴⁵⁶⁷⁸⁹'[letter]);

function paintBar(scale, view, signed) {
  const bar = $('bar'), canvas = bar.querySelector('canvas'), greys = 32;
  canvas.width = greys;
  canvas.height = LEVELS;
  const context = canvas.getContext('2d'), shown = context.createImageData(greys, LEVELS), colours = levelsOf(view, signed);
  for (let row = 0; row < LEVELS; row++)
    for (let column = 0; column < greys; column++) {
      const level = LEVELS - 1 - row, alpha = state.opacity * colours[4 * level + 3] / 255, grey = 255 * column / (greys - 1);
      for (let colour = 0; colour < 3; colour++)
        shown.data[4 * (row * greys + column) + colour] = Math.round(alpha * colours[4 * level + colour] + (1 - alpha) * grey);
      shown.data[4 * (row * greys + column) + 3] = 255;
    }
  context.putImageData(shown, 0, 0);
  bar.querySelectorAll('span').forEach(old => old.remove());
  const {ticks, exponent} = ticksOf(scale);
  for (const tick of ticks) {
    const label = element('span', {textContent: number(tick / Math.pow(10, exponent))});
    label.style.bottom = `${100 * (tick - scale.low) / (scale.high - scale.low)}%`;
    bar.append(label);
  }
  const cut = scale.cut ? ` (${data.percentile}th percentile)` : '';
  return (exponent ? ` × 10${superscript(exponent)}` : '') + cut;
}

// --- what is shown ------------------------------------------------------------------------------

let painted = null;

const percent = p => p >= 0.0005 ? p.toFixed(3) : p.toExponential(0).replace('e-', ' × 10⁻').replace(/⁻(\d+)/, (_, power) => superscript('-' + power));

function show() {
  const image = data.images[state.image], method = data.methods[state.method], map = asked(image, state);
  const photo = $('photo');
  if (photo.src !== image.photo) photo.src = image.photo;
  photo.alt = `Photo ${image.name}`;
  photo.width = image.width;
  photo.height = image.height;
  const stage = photo.parentElement.style;
  stage.aspectRatio = `${image.width} / ${image.height}`;
  stage.maxWidth = `calc(76vh * ${image.width / image.height})`;
  photo.classList.toggle('grey', state.view !== 'mask');
  painted = paint($('map'), map, image.width, image.height, state.view);
  $('map').style.opacity = state.opacity;
  const factor = paintBar(painted.scale, state.view, map.signed);
  const first = image.classes[method.pair ? 0 : state.first];
  const second = method.pair ? image.classes[1] : method.per_class && state.second >= 0 ? image.classes[state.second] : null;
  const names = [`A = ${first.name}, p(A | x) = ${percent(first.p)}`];
  if (second) names.push(`B = ${second.name}, p(B | x) = ${percent(second.p)}`);
  $('name').textContent = image.name;
  $('label').textContent = map.label + factor;
  $('what').textContent = `${method.name}: ${map.label}${factor}. ${names.join('; ')}`;
  $('map').setAttribute('aria-label', `Map of ${image.name} by ${method.name}: ${map.label}. ${names.join('; ')}`);
  $('percent').value = `${Math.round(100 * state.opacity)} %`;
  $('count').textContent = `${state.image + 1} of ${data.images.length}`;
  $('value').textContent = '';
}

function choices(container, name, options, chosen, choose) {
  container.replaceChildren(...options.map(({value, content, label, disabled}) => {
    const input = element('input', {type: 'radio', name, value, checked: value === chosen, disabled: Boolean(disabled)});
    if (label) input.setAttribute('aria-label', label);
    input.addEventListener('change', () => choose(value));
    return element('label', {}, input, content);
  }));
}

function showClasses() {
  const image = data.images[state.image], method = data.methods[state.method], single = method.pair || !method.per_class;
  const options = image.classes.map((own, index) => {
    const length = element('span');
    length.style.width = `${100 * own.p}%`;
    return {value: String(index), disabled: single, label: `${own.name}, probability ${percent(own.p)}`,
      content: element('span', {className: 'class'}, element('b', {textContent: own.name}),
        element('i', {textContent: percent(own.p)}), element('span', {className: 'length'}, length))};
  });
  choices($('class').querySelector('.classes'), 'class', options, String(state.first), value => {
    state.first = Number(value);
    if (state.second === state.first) state.second = -1;
    showContrasts();
    show();
  });
  showContrasts();
}

function showContrasts() {
  const image = data.images[state.image], method = data.methods[state.method], minus = $('minus');
  const none = method.pair ? `B = ${image.classes[1].name}` : method.per_class ? 'none: the map of A' : 'none: one map for all classes';
  minus.replaceChildren(element('option', {value: -1, textContent: none}));
  minus.disabled = method.pair || !method.per_class;
  if (!minus.disabled)
    image.classes.forEach((own, index) => {
      if (index !== state.first) minus.append(element('option', {value: index, textContent: `B = ${own.name} (${percent(own.p)})`}));
    });
  minus.value = minus.disabled ? -1 : state.second;
}

function showImage(index, focus) {
  const thumbs = $('thumbs').querySelectorAll('button');
  state.image = (index + data.images.length) % data.images.length;
  state.first = 0;
  state.second = data.contrast ? 1 : -1;
  thumbs.forEach((thumb, own) => {
    thumb.tabIndex = own === state.image ? 0 : -1;
    thumb.setAttribute('aria-current', own === state.image);
  });
  if (focus) thumbs[state.image].focus();
  showClasses();
  show();
}

// --- thumbnails: painted when they are seen --------------------------------------------------------

const watcher = new IntersectionObserver(entries => {
  for (const entry of entries)
    if (entry.isIntersecting && entry.target.dataset.shown !== shownMethod()) paintThumb(entry.target);
}, {rootMargin: '200px'});

const shownMethod = () => `${state.method} ${state.view} ${state.opacity}`;

function paintThumb(button) {
  const image = data.images[Number(button.dataset.index)], canvas = button.querySelector('canvas');
  const map = asked(image, {method: state.method, first: 0, second: data.contrast ? 1 : -1});
  paint(canvas, map, Math.max(1, Math.round(160 * image.width / image.height)), 160, state.view);
  canvas.style.opacity = state.opacity;
  button.querySelector('img').style.filter = state.view === 'mask' ? 'none' : '';
  button.dataset.shown = shownMethod();
}

function repaintThumbs() {
  $('thumbs').querySelectorAll('button').forEach(button => { watcher.unobserve(button); watcher.observe(button); });
}

function addThumb(image, index) {
  const best = image.classes[0];
  const button = element('button', {type: 'button'},
    element('span', {className: 'thumb'}, element('div', {}, element('img', {src: image.photo, alt: '', width: image.width,
      height: image.height, decoding: 'async'}), element('canvas', {ariaHidden: 'true'}))),
    element('span', {className: 'name', textContent: image.name}, element('small', {textContent: best.name})));
  button.dataset.index = index;
  button.querySelector('div').style.setProperty('--ratio', image.width / image.height);
  button.addEventListener('click', () => showImage(index));
  $('thumbs').append(element('li', {}, button));
  watcher.observe(button);
}

// --- start --------------------------------------------------------------------------------------

$('title').textContent = data.title;
data.images.forEach(addThumb);
choices($('method').querySelector('.pills'), 'method', data.methods.map((method, index) => ({value: String(index),
  content: element('span', {className: 'pill', textContent: method.name})})), '0', value => {
  state.method = Number(value);
  showClasses();
  show();
  repaintThumbs();
});
choices($('view').querySelector('.pills'), 'view', VIEWS.map(([value, text]) => ({value,
  content: element('span', {className: 'pill', textContent: text})})), 'overlay', value => {
  state.view = value;
  show();
  repaintThumbs();
});
$('minus').addEventListener('change', () => { state.second = Number($('minus').value); show(); });
$('opacity').addEventListener('input', () => { state.opacity = $('opacity').value / 100; show(); repaintThumbs(); });
$('controls').addEventListener('submit', event => event.preventDefault());
$('previous').addEventListener('click', () => showImage(state.image - 1));
$('next').addEventListener('click', () => showImage(state.image + 1));
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest('input, select')) return;
  const inThumbs = Boolean(event.target.closest('.thumbs'));
  const target = {ArrowLeft: state.image - 1, ArrowRight: state.image + 1, Home: 0, End: data.images.length - 1}[event.key];
  if (target === undefined || (!inThumbs && !event.key.startsWith('Arrow'))) return;  // Home and End scroll the page
  event.preventDefault();
  showImage(target, inThumbs);
});
$('map').addEventListener('pointermove', event => {
  const box = $('map').getBoundingClientRect(), image = data.images[state.image];
  const x = Math.floor((event.clientX - box.left) / box.width * image.width);
  const y = Math.floor((event.clientY - box.top) / box.height * image.height);
  if (x >= 0 && y >= 0 && x < image.width && y < image.height)
    $('value').textContent = `At the pointer: ${number(painted.values[y * image.width + x])}`;
});
$('map').addEventListener('pointerleave', () => { $('value').textContent = ''; });
showImage(0);
})();
