// Chooses which of the page's pictures is shown. Names from outside go into text nodes, never into markup.
const data = JSON.parse(document.getElementById('data').textContent), $ = id => document.getElementById(id);
const state = {photo: 0, view: 0, class: 0}, thumbs = $('thumbs').getElementsByTagName('button');

function make(tag, attributes, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function choices(key, texts, disabled, changed) {
  $(key).replaceChildren(...texts.map((text, index) => {
    const onchange = () => { state[key] = index; changed(); };
    const input = make('input', {type: 'radio', name: key, checked: index === state[key], disabled, onchange});
    return make('label', {className: 'choice'}, input, ...text);
  }));
}

function show() {
  const photo = data.photos[state.photo], maps = photo.maps[state.view], strength = Number($('strength').value);
  const map = maps[maps.length > 1 ? state.class : 0], plain = strength === 0;
  Object.assign($('photo'), {src: photo.photo, width: photo.width, height: photo.height});
  Object.assign($('picture'), {src: map.picture, width: photo.width, height: photo.height,
    alt: plain ? `Photo ${photo.name}` : `Map of ${photo.name}. ${map.text}`});
  $('picture').style.opacity = strength;
  $('bar').hidden = plain;
  $('colours').src = data.bars[Number(map.signed)];
  $('ticks').replaceChildren(...map.ticks.map(([, textContent]) => make('span', {textContent})));
  map.ticks.forEach(([share], index) => { $('ticks').children[index].style.bottom = `${100 * share}%`; });
  $('name').textContent = photo.name;
  $('count').textContent = `${state.photo + 1} of ${data.photos.length}`;
  $('text').textContent = plain ? '' : map.text;
  $('check').hidden = plain || !map.check;
  if (map.check) Object.assign($('check'), {src: map.check, alt: map.checked});
}

function go(photo, chosen = 0) {
  Object.assign(state, {photo: (photo + thumbs.length) % thumbs.length, class: chosen});
  const {classes, maps} = data.photos[state.photo], bars = classes.map(({p}) => make('meter', {value: p}));
  choices('class', classes.map(({name, text}, index) => [name, bars[index], text]), maps[state.view].length < 2, show);
  for (const [index, thumb] of [...thumbs].entries()) {
    const image = thumb.firstChild, {picture} = data.photos[index].maps[state.view][0];
    if (image.src !== picture) image.src = picture;
    thumb.setAttribute('aria-current', index === state.photo);
  }
  show();
}

$('title').textContent = data.title;
choices('view', data.views.map(name => [name]), false, () => go(state.photo, state.class));
data.photos.forEach(({name, classes}, index) => {
  const best = make('small', {textContent: classes[0].name});
  const button = make('button', {onclick: () => go(index)}, make('img', {alt: ''}), name, best);
  $('thumbs').append(make('li', {}, button));
});
$('strength').oninput = show;
$('previous').onclick = () => go(state.photo - 1);
$('next').onclick = () => go(state.photo + 1);
document.addEventListener('keydown', event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (!step || event.ctrlKey || event.altKey || event.metaKey || event.target.closest('input')) return;
  go(state.photo + step);
  if (event.target.closest('#thumbs')) thumbs[state.photo].focus();
});
go(0);
