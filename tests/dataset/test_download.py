"""dataset.download and the published weights: against a local server that breaks off, lies, or answers with a page."""
import hashlib
import http.server
import io
import json
import threading

import numpy as np
import pytest
import torch

from dataset import download
from experiment import weights
from wsol import build_model
from wsol.errors import UserError

CONTENT = bytes(range(256)) * 12_000  # 3 MB
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.content; server.mood says how."""
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers) | {'path': self.path})
        if server.mood == 'missing':
            return self.send_error(404)
        if server.mood == 'busy' and len(server.requests) < 3:
            return self.send_error(503)
        start = int(self.headers['Range'].split('=')[1].rstrip('-')) if 'Range' in self.headers else 0
        if server.mood == 'no resume':
            start = 0
        if start >= len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', 'text/html' if server.mood == 'page' else 'application/octet-stream')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        # a broken connection: less than was promised, a third at a time
        self.wfile.write(body[:len(server.content) // 3 + 1] if server.mood in ('broken', 'no resume once') else body)
        if server.mood == 'no resume once':
            server.mood = 'no resume'
        return None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, 'PAUSE', 0.01)
    running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    running.content, running.mood, running.requests = CONTENT, 'well', []
    running.handle_error = lambda *_: None  # a client that refuses the file hangs up
    running.url = f'http://127.0.0.1:{running.server_address[1]}/file'
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.mark.parametrize('mood', ['well', 'broken', 'no resume once', 'busy'])
def test_a_file_arrives_whole_however_the_server_behaves(server, tmp_path, mood):
    server.mood = mood
    target = tmp_path / 'new folder' / 'file'
    download.fetch(server.url, target, size=len(CONTENT), md5=MD5, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ['file']
    if mood == 'broken':
        assert [request.get('Range') for request in server.requests][0] is None
        assert all('Range' in request for request in server.requests[1:]) and len(server.requests) == 3
    before = len(server.requests)
    download.fetch(server.url, target, size=len(CONTENT), sha256=SHA256)  # there already: nothing is asked
    assert len(server.requests) == before


@pytest.mark.parametrize('partial, ranges', [
    (CONTENT[:1_000_000], ['bytes=1000000-']),  # it goes on
    (b'x' * (len(CONTENT) + 1), [f'bytes={len(CONTENT) + 1}-', None])])  # which the server cannot continue: begun anew
def test_what_an_earlier_call_left(server, tmp_path, partial, ranges):
    (tmp_path / 'file.partial').write_bytes(partial)
    download.fetch(server.url, tmp_path / 'file', sha256=SHA256)
    assert [request.get('Range') for request in server.requests] == ranges


@pytest.mark.parametrize('mood, options, words', [
    ('well', {'size': 5}, ['offers 3,072,000 bytes', 'expected 5']),
    ('well', {'md5': '0' * 32}, ['MD5', MD5]), ('well', {'sha256': '0' * 64}, ['SHA256', SHA256]),
    ('page', {}, ['gives a page', 'quota', 'by hand']), ('page by its content', {}, ['gives a page']),
    ('missing', {}, ['HTTP 404', 'by hand']),
])
def test_what_is_not_the_file_is_refused_and_not_kept(server, tmp_path, mood, options, words):
    server.mood = mood
    if mood == 'page by its content':
        server.content = b'\n<!DOCTYPE html><html>Google Drive - Quota exceeded</html>'
    with pytest.raises(UserError) as error:
        download.fetch(server.url, tmp_path / 'file', **options)
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.iterdir())


def test_no_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'PAUSE', 0)
    with pytest.raises(UserError, match='could not be downloaded.*by hand'):
        download.fetch('http://127.0.0.1:9/file', tmp_path / 'file')


def test_a_file_in_a_folder_that_cannot_be_written_is_used_and_not_recorded(tmp_path, capsys):
    """As weights that were put by hand into a clone that is read-only."""
    (tmp_path / 'weights').write_bytes(CONTENT)
    lock = download.Lock(tmp_path / 'weights/lock.json')
    lock.record('name', tmp_path / 'weights')
    assert 'the next use cannot check that' in capsys.readouterr().err and lock.entries() == {}


def test_a_recorded_file_is_checked_at_each_use_and_its_record_stays(server, tmp_path):
    lock, path = download.Lock(tmp_path / 'lock.json'), tmp_path / 'file'
    assert lock.expected('name') == {}
    download.fetch(server.url, path, **lock.expected('name'))
    lock.record('name', path)
    assert lock.entries() == {'name': {'size': len(CONTENT), 'sha256': SHA256}}
    download.fetch(server.url, path, **lock.expected('name'))
    path.write_bytes(CONTENT[:-1] + b'x')
    lock.record('name', path)
    assert lock.entries()['name']['sha256'] == SHA256
    with pytest.raises(UserError, match=f'SHA256.*as recorded in {lock.path}.*remove "name" from the record'):
        download.fetch(server.url, path, **lock.expected('name'))


@pytest.fixture
def drive(server, monkeypatch, tmp_path):
    """The local server in Google Drive's place, serving published-format weights."""
    monkeypatch.setattr(download, 'DRIVE', server.url)
    monkeypatch.setattr(weights, 'FOLDER', tmp_path / 'checkpoints')
    return server


def saved_weights():
    buffer = io.BytesIO()
    torch.save({'state_dict': {'x': torch.ones(3)}}, buffer)
    return buffer.getvalue()


def test_published_weights_come_by_name_once_and_are_checked_at_each_use(drive):
    content = drive.content = saved_weights()
    path = weights.fetch_published('CALM_EM-CUB')
    assert path.read_bytes() == content and f'id={weights.PUBLISHED["CALM_EM-CUB"]}' in drive.requests[0]['path']
    lock = json.loads((path.parent / 'published.lock.json').read_text())
    assert lock == {'CALM_EM-CUB': {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()}}
    weights.fetch_published('CALM_EM-CUB')
    assert len(drive.requests) == 1
    path.write_bytes(content[:-1] + b'x')
    with pytest.raises(UserError, match='SHA256.*as recorded in .*published.lock.json'):
        weights.fetch_published('CALM_EM-CUB')


def test_weights_put_there_by_hand_are_recorded(drive):
    path = weights.published_file('CALM_ML-ImageNet')
    path.parent.mkdir()
    path.write_bytes(b'<html>quota</html>')
    with pytest.raises(UserError, match='cannot be read as weights'):
        weights.fetch_published('CALM_ML-ImageNet')
    assert not (path.parent / 'published.lock.json').exists()  # a wrong file is not made the right one
    path.write_bytes(saved_weights())
    weights.fetch_published('CALM_ML-ImageNet')
    assert not drive.requests
    lock = json.loads((path.parent / 'published.lock.json').read_text())
    assert lock['CALM_ML-ImageNet']['size'] == len(saved_weights())


def test_a_quota_page_is_not_saved_as_weights(drive):
    drive.content = b'<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>'
    with pytest.raises(UserError, match='drive.google.com/file/d/1XfBEc1Lh24WqJZP1aLLrwGSlj_INMVef/view'):
        weights.fetch_published('CALM_EM-CUB')
    assert not weights.FOLDER.exists()


@pytest.mark.parametrize('options, prefix', [({}, ''), ({'_use_new_zipfile_serialization': False}, 'module.')], ids=['new', 'old'])
def test_published_format_loads_with_what_its_name_says(drive, tmp_path, options, prefix, monkeypatch):
    """A file as the authors saved theirs: no record of the network, numpy numbers beside the weights."""
    monkeypatch.setattr(weights, 'PUBLISHED', {'CALM_EM-CUB': 'x'})
    state = build_model('resnet50', 'CALM_EM', 200, large_feature_map=True).state_dict()
    torch.save({'architecture': 'resnet50', 'epoch': 40, 'best': np.float64(71.8), 'optimizer': {},
                'state_dict': {prefix + name: value for name, value in state.items()}}, tmp_path / 'file', **options)
    drive.content = (tmp_path / 'file').read_bytes()
    model, checkpoint = weights.load_model('CALM-EM-CUB', save_root=tmp_path)
    assert checkpoint.known['dataset'] == 'CUB'
    assert (checkpoint.network['attribution_method'], checkpoint.network['large_feature_map']) == ('CALM_EM', True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
