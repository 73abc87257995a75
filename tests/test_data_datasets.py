"Named datasets: downloads that break, archives that attack, files that rot, and the registry against the real files"
import hashlib,io,json,lzma,os,tarfile,zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np,pandas as pd,pytest
from hypothesis import given,settings,strategies as st
from ulmfit_t5.core import bundled
from ulmfit_t5.data import datasets as D
from ulmfit_t5.data.datasets import DatasetSpec,dataset_info,datasets,few_shot,lm_texts,load_dataset,register_dataset
from ulmfit_t5.data.download import check_file,extract,fetch

home = os.environ.get('ULMFIT_T5_DATA')
real = pytest.mark.skipif(not home, reason="$ULMFIT_T5_DATA is not set: the registry cannot be compared with the real files")

def sha(b): return hashlib.sha256(b).hexdigest()

@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    "A machine with nothing on it, and the registry as it was afterwards"
    monkeypatch.setenv('ULMFIT_T5_CACHE', str(tmp_path/'cache'))
    for o in ('ULMFIT_T5_DATA','ULMFIT_T5_OFFLINE'): monkeypatch.delenv(o, raising=False)
    before = dict(D._registry())
    yield
    D._registry().clear()
    D._registry().update(before)

class Files(BaseHTTPRequestHandler):
    "Serves `server.files` with ETag and Range; breaks off after `server.breaks.pop()` bytes while that list is not empty"
    def log_message(self, *args): pass
    def do_GET(self):
        s = self.server
        s.asked.append((self.path, self.headers.get('Range')))
        if self.path not in s.files: return self.send_error(404)
        body,tag = s.files[self.path],'"%s"' % sha(s.files[self.path])[:8]
        start = 0
        if (r := self.headers.get('Range')) and self.headers.get('If-Range')==tag: start = int(r[6:].rstrip('-'))
        if start>=len(body) and start: return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('ETag', tag)
        self.send_header('Content-Length', str(len(body)-start))
        self.end_headers()
        stop = start+s.breaks.pop() if s.breaks else len(body)
        self.wfile.write(body[start:stop])

@pytest.fixture
def server():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Files)
    s.files,s.breaks,s.asked,s.url = {},[],[],f'http://127.0.0.1:{s.server_port}'
    Thread(target=s.serve_forever, args=(.01,), daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()

body = np.random.default_rng(0).bytes(300_000)

def test_download_once(server, tmp_path):
    server.files['/a'] = body
    p = tmp_path/'a.bin'
    assert fetch(server.url+'/a', p, sha(body), len(body)).read_bytes()==body
    assert fetch(server.url+'/a', p, sha(body))==p and len(server.asked)==1
    assert sorted(o.name for o in tmp_path.iterdir() if o.is_file())==['a.bin']

def test_broken_line_goes_on_where_it_stopped(server, tmp_path):
    server.files['/a'],server.breaks[:] = body,[70_000,100_000]
    assert fetch(server.url+'/a', tmp_path/'a', sha(body)).read_bytes()==body
    assert [r for _,r in server.asked]==[None,'bytes=100000-','bytes=170000-']

def test_resume_in_a_later_call(server, tmp_path):
    server.files['/a'],server.breaks[:] = body,[10,10,1000]
    with pytest.raises(ConnectionError, match='1020 of 300000 bytes came.*call again to go on'):
        fetch(server.url+'/a', tmp_path/'a', sha(body))
    assert not (tmp_path/'a').exists() and (tmp_path/'a.part').stat().st_size==1020
    assert fetch(server.url+'/a', tmp_path/'a', sha(body)).read_bytes()==body
    assert server.asked[-1][1]=='bytes=1020-'

def test_file_changed_between_the_halves(server, tmp_path):
    server.files['/a'],server.breaks[:] = body,[10,10,1000]
    with pytest.raises(ConnectionError): fetch(server.url+'/a', tmp_path/'a')
    server.files['/a'] = body[::-1]
    assert fetch(server.url+'/a', tmp_path/'a').read_bytes()==body[::-1]

def test_part_that_is_already_whole(server, tmp_path):
    server.files['/a'] = body
    (tmp_path/'a.part').write_bytes(body)
    (tmp_path/'a.part.tag').write_text(f'{server.url}/a\n"{sha(body)[:8]}"')
    assert fetch(server.url+'/a', tmp_path/'a', sha(body)).read_bytes()==body

@pytest.mark.parametrize('kw', [dict(hash='0'*64), dict(hash='md5:'+'0'*32), dict(size=7)])
def test_wrong_file_is_thrown_away(server, tmp_path, kw):
    server.files['/a'] = body
    with pytest.raises(ValueError, match='not the expected file.*thrown away'): fetch(server.url+'/a', tmp_path/'a', **kw)
    assert not (tmp_path/'a').exists() and not (tmp_path/'a.part').exists()

def test_md5_and_trust_on_first_use(server, tmp_path):
    server.files['/a'] = body
    fetch(server.url+'/a', tmp_path/'m', 'md5:'+hashlib.md5(body).hexdigest())
    p = fetch(server.url+'/a', tmp_path/'a')
    assert (tmp_path/'a.sha256').read_text().split()==[sha(body),'a']
    p.unlink()
    server.files['/a'] = body[:-1]+b'x'
    with pytest.raises(ValueError, match='not the expected file'): fetch(server.url+'/a', p)

def test_mirror_and_404(server, tmp_path):
    server.files['/b'] = body
    assert fetch([server.url+'/gone', server.url+'/b'], tmp_path/'a', sha(body)).read_bytes()==body
    assert len([1 for p,_ in server.asked if p=='/gone'])==1
    with pytest.raises(ConnectionError, match='c could not be downloaded from .*gone.*Not Found.*put the file at'):
        fetch(server.url+'/gone', tmp_path/'c')

def test_no_server(tmp_path):
    with pytest.raises(ConnectionError, match='could not be downloaded from http://127.0.0.1:9/a'):
        fetch('http://127.0.0.1:9/a', tmp_path/'a')

def test_offline_touches_no_network(server, tmp_path, monkeypatch):
    server.files['/a'] = body
    monkeypatch.setenv('ULMFIT_T5_OFFLINE', '1')
    with pytest.raises(ConnectionError, match='ULMFIT_T5_OFFLINE forbids'): fetch(server.url+'/a', tmp_path/'a')
    assert server.asked==[]

def _member(name, **kw):
    m = tarfile.TarInfo(name)
    for k,v in kw.items(): setattr(m, k, v)
    return m

evil = dict(up=_member('../evil'), absolute=_member('/tmp/evil'), deep=_member('a/../../evil'), drive=_member('C:/evil'),
    link=_member('l', type=tarfile.SYMTYPE, linkname='/etc'), hard=_member('h', type=tarfile.LNKTYPE, linkname='../evil'),
    device=_member('d', type=tarfile.CHRTYPE), back=_member('..\\evil'))

@pytest.mark.parametrize('kind', evil)
def test_tar_that_leaves_its_folder_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path/'x.tgz', 'w:gz') as t:
        t.addfile(_member('ok.txt', size=2), io.BytesIO(b'ok'))
        t.addfile(evil[kind])
    with pytest.raises(ValueError, match='link, a device or lies outside.*not unpacked'): extract(tmp_path/'x.tgz', tmp_path/'in'/'x')
    assert not list((tmp_path/'in').iterdir()) and not (tmp_path/'evil').exists()

@pytest.mark.parametrize('name', ['../evil','/evil','a/../../evil'])
def test_zip_that_leaves_its_folder_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr(name, 'x')
    with pytest.raises(ValueError, match='not unpacked'): extract(tmp_path/'x.zip', tmp_path/'in'/'x')

def test_zip_link_is_refused(tmp_path):
    i = zipfile.ZipInfo('l')
    i.external_attr = 0o120777<<16
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr(i, '/etc')
    with pytest.raises(ValueError, match='not unpacked'): extract(tmp_path/'x.zip', tmp_path/'x')

@pytest.mark.parametrize('kind', ['zip','tgz','html'])
def test_damaged_archive(tmp_path, kind):
    p = tmp_path/f'x.{kind}'
    if kind=='zip':
        with zipfile.ZipFile(p, 'w') as z: z.writestr('a', body)
        p.write_bytes(p.read_bytes().replace(body[:50], bytes(50)))
    elif kind=='tgz':
        with tarfile.open(p, 'w:gz') as t: t.addfile(_member('a', size=len(body)), io.BytesIO(body))
        p.write_bytes(p.read_bytes()[:-5000])
    else: p.write_text('<html>This page has moved</html>')
    with pytest.raises(ValueError, match='not a whole zip or tar'): extract(p, tmp_path/'x')
    assert not (tmp_path/'x').exists()

def _tgz(files):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode='w:gz') as t:
        for k,v in files.items(): t.addfile(_member(k, size=len(v)), io.BytesIO(v))
    return b.getvalue()

def _register(server, name, data, **kw):
    server.files['/x.tgz'] = data
    up = dict(files={'x.tgz':dict(urls=[server.url+'/x.tgz'], bytes=len(data), hash=sha(data))}, **kw)
    register_dataset(DatasetSpec(name, 'for a test', 'classes', ['text'], 'label', 2, upstream=up))

def test_archive_of_folders_end_to_end(server):
    data = _tgz({'x/train/pos/1_9.txt':b'good', 'x/train/neg/0_2.txt':b'bad', 'x/train/neg/10_1.txt':'schl\xe9cht'.encode(),
        'x/un/unsup/0_0.txt':b'who knows'})
    splits = dict(train=['x.tgz','x/train/*/*.txt',3], unsup=['x.tgz','x/un/unsup/*.txt',1])
    _register(server, 'rev', data, read='folder', unlabelled='unsup', splits=splits)
    assert datasets().loc['rev','found'].startswith('to download')
    d = load_dataset('rev')
    assert d.train.values.tolist()==[['bad','neg'],['schl\xe9cht','neg'],['good','pos']] and list(d.unsup)==['text']
    assert load_dataset('rev', 'train', original=True).rating.tolist()==['2','1','9']
    assert len(server.asked)==1 and datasets().loc['rev','found']=='the cache'
    assert list(lm_texts('rev', 'unsup'))==['who knows'] and len(server.asked)==1

def test_headless_csv_and_row_count(server):
    data = _tgz({'x/train.csv':b'"1","say ""no""\\nmore"\n"2","NA"\n'})
    _register(server, 'h', data, read='headless', columns=['label','text'], splits=dict(train=['x.tgz','x/train.csv',2]))
    assert load_dataset('h', 'train').values.tolist()==[['say "no"\nmore','1'],['NA','2']]
    _register(server, 'h', data, read='headless', columns=['label','text'], splits=dict(train=['x.tgz','x/train.csv',3]))
    with pytest.raises(ValueError, match='has 2 rows in .*expected 3'): load_dataset('h', 'train')

def test_hostile_upstream_leaves_nothing(server, tmp_path):
    _register(server, 'e', _tgz({'../../evil':b'x'}), read='folder', splits=dict(train=['x.tgz','*',1]))
    with pytest.raises(ValueError, match='not unpacked'): load_dataset('e', 'train')
    assert [p for p in (tmp_path/'cache').rglob('*') if p.is_file()]==[]

def test_download_false_and_offline_say_what_and_where(server, monkeypatch):
    _register(server, 'x', _tgz({'a':b'x'}), read='folder', splits=dict(train=['x.tgz','*',1]))
    with pytest.raises(FileNotFoundError, match="train of 'x' is not on this machine: looked for .*x.tgz.d, .*allow download=True"):
        load_dataset('x', 'train', download=False)
    monkeypatch.setenv('ULMFIT_T5_OFFLINE', '1')
    for n in ('x','imdb','trec'):
        with pytest.raises(FileNotFoundError, match=r'train of .* not on this machine: looked for .*not set.*ULMFIT_T5_OFFLINE forbids'):
            load_dataset(n, 'train')
        with pytest.raises(FileNotFoundError): lm_texts(n, 'train')
    with pytest.raises(FileNotFoundError, match="no public download of it is known.*'yelp_full'"): load_dataset('yelp', 'train')
    assert server.asked==[]

def test_bundled_needs_nothing(monkeypatch):
    monkeypatch.setenv('ULMFIT_T5_OFFLINE', '1')
    d = load_dataset('dbpedia')
    got = {k:(len(v),v.label.nunique(),set(v.label.value_counts())) for k,v in d.items()}
    assert got==dict(train=(11200,14,{800}), test=(2800,14,{200}))
    assert sum(p.stat().st_size for p in bundled('dbpedia14').iterdir())<1_250_000
    readme = (bundled('dbpedia14')/'README.md').read_text(encoding='utf8')
    for o in dataset_info('dbpedia').splits.values(): assert o[0][2] in readme
    for o in ('by-sa/3.0','GNU Free Documentation','Lehmann','Zhang'): assert o in readme

def test_data_home_comes_first_then_bundled_then_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('ULMFIT_T5_DATA', str(tmp_path/'home'))
    spec = dataset_info('dbpedia')
    assert D._where(spec, 'test')[0]=='the package'
    f = tmp_path/'home'/spec.splits['test'][0][0]
    f.parent.mkdir(parents=True)
    f.write_bytes((bundled('dbpedia14')/'test.csv.xz').read_bytes())
    assert D._where(spec, 'test')[0]=='$ULMFIT_T5_DATA' and D._where(spec, 'train')[0]=='the package'
    f.write_bytes(f.read_bytes()[:-100])
    with pytest.raises(ValueError, match='test.csv.xz is damaged or another file.*expected eff842e88cd3'): load_dataset('dbpedia', 'test')

def test_checked_once_then_remembered(tmp_path, monkeypatch):
    p = tmp_path/'a'
    p.write_bytes(b'abc')
    check_file(p, sha(b'abc'))
    monkeypatch.setattr('ulmfit_t5.data.download._digest', lambda *_: pytest.fail('hashed again'))
    check_file(p, sha(b'abc'))
    monkeypatch.undo()
    monkeypatch.setenv('ULMFIT_T5_CACHE', str(tmp_path/'cache'))
    p.write_bytes(b'abX')
    os.utime(p, ns=(1,1))
    with pytest.raises(ValueError, match='damaged'): check_file(p, sha(b'abc'))
    (tmp_path/'cache'/'verified.json').write_text('{"half')
    check_file(p, sha(b'abX'))

def test_readers(tmp_path):
    p = tmp_path/'a.jsonl.xz'
    rows = [dict(text='a\u2028b', label='007'),dict(text='2020-01-01', label='x')]
    with lzma.open(p, 'wt', encoding='utf8') as f: f.write(''.join(json.dumps(o, ensure_ascii=False)+'\n' for o in rows))
    assert D._jsonl([p], {}).values.tolist()==[['a\u2028b','007'],['2020-01-01','x']]
    p = tmp_path/'a.tsv'
    p.write_text('sentence\tlabel\nsays "half \t1\nNA\t0\n')
    assert D._tsv([p], {}).values.tolist()==[['says "half','1'],['NA','0']]
    for n,t in (('r.neg','bad \nworse\x85still bad\n'),('r.pos','caf\xe9\n')): (tmp_path/n).write_text(t, encoding='latin-1')
    got = D._lines([tmp_path/'r.neg', tmp_path/'r.pos'], dict(labels={'r.neg':'neg','r.pos':'pos'}, encoding='latin-1'))
    assert got.values.tolist()==[['bad','neg'],['worse\x85still bad','neg'],['caf\xe9','pos']]

def test_labels_become_words_lists_and_floats(tmp_path, monkeypatch):
    monkeypatch.setenv('ULMFIT_T5_DATA', str(tmp_path))
    (tmp_path/'t.csv').write_text('a,b,y\nx1,z1,1\nx2,z2,"1,2"\nx3,z3,3\n')
    def load(task, **kw):
        register_dataset(DatasetSpec('t', '', task, ['a','b'], 'y', splits=dict(all=[('t.csv', 3, None)]), **kw))
        return load_dataset('t', 'all')
    d = load('labels', names={'1':'joy','2':'fear'})
    assert d.label.tolist()==[['joy'],['joy','fear'],['3']] and list(d)==['text','text_a','text_b','label'] and d.text[0]=='x1\nz1'
    assert load('classes', names={'1':'one','1,2':None}).label.tolist()==['one','3']
    (tmp_path/'t.csv').write_text('a,b,y\nx1,z1,1\nx2,z2,2.5\nx3,z3,3\n')
    assert load('regression').label.tolist()==[1.,2.5,3.]

@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1,30), min_size=2, max_size=6), data=st.data())
def test_few_shot_is_stratified_seeded_and_nested(counts, data):
    df = pd.DataFrame(dict(label=np.repeat([f'c{i}' for i in range(len(counts))], counts))).sample(frac=1, random_state=1)
    n = data.draw(st.integers(len(counts), len(df)))
    got = few_shot(df, n_total=n, seed=7)
    assert len(got)==n==got.index.nunique() and got.label.nunique()==len(counts) and got.equals(few_shot(df, n_total=n, seed=7))
    share = got.label.value_counts()-df.label.value_counts()*n/len(df)
    assert (share.abs()<max(2, len(counts))).all()
    k = data.draw(st.integers(1, min(counts)))
    a,b = few_shot(df, k, seed=7),few_shot(df, 1, seed=7)
    assert set(a.label.value_counts())=={k} and set(b.index)<=set(a.index) and set(a.index)<=set(df.index)

def test_few_shot_refuses():
    df = pd.DataFrame(dict(label=['a']*5+['b'], score=np.arange(6)/2))
    for kw,msg in ((dict(), 'either'), (dict(n_per_class=1, n_total=2), 'either'), (dict(n_per_class=2), "class 'b' has 1 rows"),
        (dict(n_total=1), 'at least'), (dict(n_total=7), 'at most all'), (dict(n_per_class=1, label='score'), 'numbers or lists')):
        with pytest.raises(ValueError, match=msg): few_shot(df, **kw)
    a,b = few_shot(df, n_total=2, seed=1),few_shot(df, n_total=2, seed=2)
    assert set(a.label)==set(b.label)=={'a','b'}

def test_registry_is_whole():
    for s in D._registry().values():
        assert s.all_splits and s.task in ('classes','labels','regression','text','tags','lm') and s.licence and s.cite, s.name
        assert s.task in ('lm','tags') or s.label, s.name
        for f,_,h in (o for v in s.splits.values() for o in v): assert len(h)==64 and not Path(f).is_absolute() and '..' not in f
        assert not s.instead or dataset_info(s.instead).upstream
        if u := s.upstream:
            assert u['read'] in D._readers and all(v[0] in u['files'] for v in u['splits'].values())
            assert all(o.startswith('http') for f in u['files'].values() for o in f['urls'])
    assert dataset_info('yelp_full').splits=={} and 'without' not in str(dataset_info('dbpedia'))

@contextmanager
def _home(monkeypatch):
    monkeypatch.setenv('ULMFIT_T5_DATA', home)
    yield Path(home)

@real
def test_every_file_of_the_data_home_is_the_one_in_the_registry(monkeypatch):
    "Rows, classes and hashes of every split up to 6 MB; a split that this data folder does not have is left out, most must be there"
    with _home(monkeypatch) as root:
        sources = (root/'SOURCES.md').read_text(encoding='utf8')
        seen = 0
        for s in D._registry().values():
            for split,parts in s.splits.items():
                for f,n,h in parts: assert f'| {f} |' in sources and h in sources
                if not D._where(s, split) or sum(Path(root/f).stat().st_size for f,_,_ in parts)>6e6: continue
                d = load_dataset(s.name, split)
                seen += 1
                if not (s.names and None in s.names.values()): assert len(d)==s.rows(split), (s.name, split)
                if split in ('train','all') and s.task=='classes' and s.name!='wsc': assert d.label.nunique()==s.classes, s.name
                if 'text' in d: assert d.text.str.strip().ne('').mean()>.99, (s.name, split)
        assert seen>100

@real
def test_sizes_that_papers_print(monkeypatch):
    with _home(monkeypatch):
        published = dict(trec='train 5,452, test 500', imdb='train 25,000, test 25,000, unsup 50,000',
            sst5='train 8,544, dev 1,101, test 2,210')
        for n,want in published.items(): assert datasets().loc[n,'rows']==want and datasets().loc[n,'found']=='$ULMFIT_T5_DATA'
        assert set(load_dataset('trec','test').label)==set('ABBR DESC ENTY HUM LOC NUM'.split())
        assert load_dataset('trec50','test').label.nunique()==42
        assert set(load_dataset('yelp_polarity','test').label)=={'positive','negative'}
        assert load_dataset('stsb','dev').label.between(0,5).all()

@real
def test_articles_stream_with_flat_memory(monkeypatch):
    import tracemalloc
    with _home(monkeypatch):
        assert sum(1 for _ in lm_texts('wikipedia','valid'))==80 and sum(1 for _ in lm_texts('wikitext-103','test'))==60
        it = lm_texts('wikipedia', shards=1)
        next(it) # xz has its dictionary of 64 MB now
        tracemalloc.start()
        docs = [next(it).startswith('= ') for _ in range(1000)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert all(docs) and peak<5e6

@real
def test_aclimdb_folder_reads_like_the_csv(monkeypatch, tmp_path):
    "Files laid out as in the published archive give the rows of our csv"
    with _home(monkeypatch):
        df = load_dataset('imdb', 'test', original=True).groupby('label').head(50)
        for r in df.itertuples():
            p = tmp_path/'aclImdb'/'test'/r.label/f'{r.id}_{r.rating}.txt'
            p.parent.mkdir(parents=True, exist_ok=True)
            p.write_text(r.text, encoding='utf8')
        u = dataset_info('imdb').upstream
        got = D._folder(list(tmp_path.glob(u['splits']['test'][1])), u)
        pd.testing.assert_frame_equal(got[list(df)], df.reset_index(drop=True))
