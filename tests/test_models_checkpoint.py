"Artefacts under faults, vocabulary matching, and fastai's files"
import io,json,os,random,subprocess,sys,time
from pathlib import Path
import pytest,torch
from hypothesis import HealthCheck,given,settings,strategies as st
from safetensors.torch import load_file
from ulmfit_t5 import core
from ulmfit_t5.core import seed_everything
from ulmfit_t5.models import checkpoint
from ulmfit_t5.models.awd_lstm import *
from ulmfit_t5.models.checkpoint import *
from ulmfit_t5.models.fastai_weights import *
from ulmfit_t5.models.heads import TextClassifier

size = dict(emb_sz=16, n_hid=24, n_layers=2)
config = dict(arch='awd_lstm', kind='language_model', model=dict(vocab_sz=50, **size), backwards=False)

class Tok:
    def save(self, folder):
        (Path(folder)/'spm').mkdir()
        (Path(folder)/'spm'/'vocab.txt').write_text('a\nb')

@pytest.fixture
def lm():
    seed_everything()
    return language_model(50, **size)
@pytest.fixture
def saved(tmp_path, lm): return save_artefact(tmp_path/'m', config, lm, Tok(), card='# Card\n')

def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('shard_mb', [None,.004,.02])
def test_round_trip(tmp_path, lm, shard_mb):
    p = save_artefact(tmp_path/'x'/'m', config, lm, Tok(), shard_mb=shard_mb)
    art = load_artefact(p)
    assert same(art.tensors, lm.state_dict()) and art.config==config and 'parameters' in art.card
    assert (p/'spm'/'vocab.txt').read_text()=='a\nb'
    files = sorted(p.glob('*.safetensors'))
    if shard_mb:
        assert len(files)>1 and all(f.stat().st_size<=shard_mb*1e6 for f in files)
        index = json.loads((p/'model.safetensors.index.json').read_text())
        assert all(k in load_file(p/f) for k,f in index['weight_map'].items())
    assert 'decoder.weight' not in {k for f in files for k in load_file(f)}
    assert not list(tmp_path.rglob('.m*'))

@pytest.mark.parametrize('dtype,eps', [('fp16',1e-3),('bf16',1e-2),('fp32',0)])
def test_stored_dtypes_load_as_float32(tmp_path, dtype, eps):
    clf = TextClassifier(AWDLSTM(50, **size), 3)
    clf(torch.randint(9, 50, (4,9)))
    art = load_artefact(save_artefact(tmp_path/'c', dict(kind='classifier'), clf, dtype=dtype))
    assert all(t.dtype in (torch.float32,torch.int64) for t in art.tensors.values())
    for k,t in clf.state_dict().items(): torch.testing.assert_close(art.tensors[k], t, atol=eps, rtol=eps)
    load_tensors(TextClassifier(AWDLSTM(50, **size), 3), art.tensors)

@settings(max_examples=40, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=6), limit=st.integers(1300, 20000))
def test_shards_hold_everything_within_the_limit(shapes, limit, tmp_path_factory):
    ts = {f't.{i}':torch.randn(s) for i,s in enumerate(shapes)}
    d = tmp_path_factory.mktemp('s')
    try: write_tensors(d, ts, limit/1e6)
    except ValueError as e:
        assert 'give a larger shard_mb' in str(e) and any(t[0].nbytes+2000>limit-1000 for t in ts.values())
        return
    fs = list(d.glob('*.safetensors'))
    assert all(f.stat().st_size<=limit for f in fs) or len(fs)==1
    assert same(read_tensors(d, [f.name for f in fs]), ts)

def test_tied_views_and_slices(tmp_path):
    base = torch.randn(6,4)
    ts = dict(a=base, b=base, rows=base[2:5], t=base.T)
    art = load_artefact(save_artefact(tmp_path/'m', {}, ts))
    assert same(art.tensors, ts)

def test_float16_overflow_is_refused_and_nothing_is_left(tmp_path):
    big = dict(w=torch.tensor([1e6]))
    with pytest.raises(ValueError, match="w holds 1e\\+06, too large"): save_artefact(tmp_path/'m', {}, big, dtype='fp16')
    with pytest.raises(ValueError, match="dtype='int3' is not known"): save_artefact(tmp_path/'m', {}, {}, dtype='int3')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('shard_mb', [None,.01])
def test_every_file_is_watched(tmp_path, lm, shard_mb):
    "One changed byte, a lost byte, a lost file: each is found, in each file, and named"
    p = save_artefact(tmp_path/'m', config, lm, Tok(), shard_mb=shard_mb)
    for f in [f for f in p.rglob('*') if f.is_file() and f.name!='manifest.json']:
        whole = f.read_bytes()
        i = random.Random(0).randrange(len(whole))
        flipped = whole[:i]+bytes([whole[i]^1])+whole[i+1:]
        for bad,msg in ((flipped, 'SHA-256'),(whole[:-1], 'truncated'),(whole+b' ', 'has changed'),(b'', 'truncated')):
            f.write_bytes(bad)
            with pytest.raises(ArtefactError, match=msg) as e: load_artefact(p)
            assert f.name in str(e.value) and '\n' not in str(e.value)
        f.unlink()
        with pytest.raises(ArtefactError, match=f'lacks .*{f.name}'): load_artefact(p)
        f.write_bytes(whole)
    load_artefact(p)

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_weights_without_hashes_give_a_sentence(saved, data):
    "Even unverified, damage of the header never gives anything but a sentence or tensors"
    f = saved/'model.safetensors'
    whole = f.read_bytes()
    i = data.draw(st.integers(0, 400))
    f.write_bytes(whole[:i]+bytes([data.draw(st.integers(0, 255))])+whole[i+1:])
    try: load_artefact(saved, verify=False)
    except ArtefactError as e: assert str(saved) in str(e)
    finally: f.write_bytes(whole)

def pickle_bytes(): # torch.save writes a zip that holds a pickle
    b = io.BytesIO()
    torch.save({'a':torch.ones(2)}, b)
    return b.getvalue()

@pytest.mark.parametrize('bad', [pickle_bytes(), b'\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00.', b'\x80\x02cos\nsystem\nq\x00.'])
def test_pickle_in_disguise_is_refused_before_anything_else(saved, bad):
    f = saved/'model.safetensors'
    f.write_bytes(bad)
    man = json.loads((saved/'manifest.json').read_text())
    man['files']['model.safetensors'] = dict(bytes=len(bad), sha256=checkpoint.sha256_file(f)) # even when the manifest agrees
    (saved/'manifest.json').write_text(json.dumps(man))
    with pytest.raises(ArtefactError, match='could run code'): load_artefact(saved)

def test_wrong_places(tmp_path, saved, lm):
    with pytest.raises(ArtefactError, match='is not there'): load_artefact(tmp_path/'none')
    (tmp_path/'f').write_text('x')
    with pytest.raises(ArtefactError, match='is a file'): load_artefact(tmp_path/'f')
    with pytest.raises(ArtefactError, match='no manifest.json among'): load_artefact(tmp_path)
    with pytest.raises(ArtefactError, match='holds a language_model, not a classifier'): load_artefact(saved, 'classifier')
    assert load_artefact(saved, ('encoder','language_model')).card=='# Card\n'
    with pytest.raises(ArtefactError, match="only an artefact: it holds 'f'"): save_artefact(tmp_path, config, lm)
    with pytest.raises(ArtefactError, match="it holds 'f'"): save_artefact(tmp_path/'f', config, lm)
    assert (tmp_path/'f').read_text()=='x'

@pytest.mark.parametrize('text,msg', [('{', 'not readable JSON'), ('[1]', 'JSON object'), ('{"format":"9"}', "has format '9'"),
    ('[['*9000, 'not readable JSON')])
def test_broken_manifest(saved, text, msg):
    (saved/'manifest.json').write_text(text)
    with pytest.raises(ArtefactError, match=msg): load_artefact(saved)

def test_manifest_cannot_reach_outside(saved):
    man = json.loads((saved/'manifest.json').read_text())
    man['files']['../secret'] = dict(bytes=1, sha256='')
    (saved/'manifest.json').write_text(json.dumps(man))
    (saved.parent/'secret').write_text('x')
    with pytest.raises(ArtefactError, match='lies outside'): load_artefact(saved)

def test_full_disk_leaves_the_old_artefact(saved, lm, monkeypatch):
    old = load_artefact(saved)
    with torch.no_grad(): lm.decoder.bias += 1
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    for target,name in ((checkpoint,'save_file'),(checkpoint,'write_json'),(Tok,'save'),(Path,'write_text')):
        with monkeypatch.context() as m:
            m.setattr(target, name, full)
            with pytest.raises(OSError, match='No space left.*untouched'): save_artefact(saved, config, lm, Tok())
        assert same(load_artefact(saved).tensors, old.tensors)
        assert [p.name for p in saved.parent.iterdir()]==['m']

_limited = """
import resource,signal,sys
from ulmfit_t5.models.awd_lstm import language_model
from ulmfit_t5.models.checkpoint import save_artefact
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000,4000))
try: save_artefact(sys.argv[1], {}, language_model(5000, emb_sz=16, n_hid=24, n_layers=2))
except OSError as e: print('refused:', 'untouched' in str(e))
"""
def test_files_that_cannot_grow(saved):
    "The same with real writes that fail half way"
    old = load_artefact(saved)
    res = subprocess.run([sys.executable,'-c',_limited,saved], capture_output=True, text=True)
    assert res.stdout=='refused: True\n', res.stderr
    assert same(load_artefact(saved).tensors, old.tensors)

_forever = """
import sys,torch
from ulmfit_t5.models.checkpoint import save_artefact
for i in range(1, 10**6):
    save_artefact(sys.argv[1], {'i':i}, {f't{j}':torch.full((300,300), float(i)) for j in range(8)}, shard_mb=.5)
    if i<9: print(i, flush=True)
"""
def test_kill_9_leaves_a_whole_artefact(tmp_path):
    "Killed without warning at five random moments of endless saving; what is there is always whole and of one save, the last that was done or a later one"
    p,rnd = tmp_path/'m',random.Random(0)
    for done in range(1, 6):
        with subprocess.Popen([sys.executable,'-c',_forever,p], stdout=subprocess.PIPE) as proc:
            assert [int(proc.stdout.readline()) for _ in range(done)]==[*range(1, done+1)]
            time.sleep(rnd.random()*.05) # somewhere in a save
            proc.kill()
        art = load_artefact(p)
        assert art.config['i']>=done and all((t==art.config['i']).all() for t in art.tensors.values())

_killed = """
import os,sys,torch
from ulmfit_t5 import core
from ulmfit_t5.models.checkpoint import save_artefact
path,where,exchange = sys.argv[1:]
def die(*args, **kwargs): os.kill(os.getpid(), 9)
def kill_if_ours(f): return lambda a,*args,**kw: die() if path in map(str, (a,*args)) or core.Path(a).parent==core.Path(path).parent else f(a, *args, **kw)
if exchange!='can': core._exchange = lambda a,b: False
if where=='fsync': core._fsync = die
elif where=='replace': core.os.replace = kill_if_ours(os.replace)
elif where=='rmtree': core.shutil.rmtree = kill_if_ours(core.shutil.rmtree)
save_artefact(path, {'new':1}, {'w':torch.ones(3)})
print('saved')
"""
@pytest.mark.parametrize('where,exchange,new', [('fsync','can',False),('fsync','cannot',False),('replace','cannot',False),('rmtree','can',True),('rmtree','cannot',True)])
def test_kill_9_at_each_step(saved, where, exchange, new):
    "Before, between and after the renames the old or the new artefact is whole; the next save leaves nothing behind"
    old = load_artefact(saved)
    res = subprocess.run([sys.executable,'-c',_killed,saved,where,exchange], capture_output=True, text=True)
    assert res.returncode==-9 and not res.stdout, res.stderr
    assert saved.exists()==(where!='replace') and len(list(saved.parent.iterdir()))==1+saved.exists()
    got = load_artefact(saved)
    assert got.config=={'new':1} if new else same(got.tensors, old.tensors)
    save_artefact(saved, {'new':2}, {'w':torch.ones(3)})
    assert load_artefact(saved).config=={'new':2} and [o.name for o in saved.parent.iterdir()]==['m']

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux exchanges two names in one step')
def test_an_artefact_that_is_replaced_is_never_away(saved, monkeypatch):
    "With two renames there is an instant without it; where the names are exchanged, nothing is ever moved from its place"
    moved = []
    rename = Path.rename
    monkeypatch.setattr(Path, 'rename', lambda a,b: (moved.append(a), rename(a, b))[1])
    save_artefact(saved, {'new':1}, {'w':torch.ones(3)})
    assert saved not in moved and load_artefact(saved).config=={'new':1}
    monkeypatch.setattr(core, '_exchange', lambda a,b: False)
    save_artefact(saved, {'new':2}, {'w':torch.ones(3)})
    assert saved in moved and load_artefact(saved).config=={'new':2}

def test_only_what_is_abandoned_is_swept(saved):
    d,dead,elsewhere = saved.parent,f'{core._here()}-{1<<22|1}-x','0'*16+'-1-x'
    keep = [f'.m.{core._here()}-{os.getpid()}-x',f'.m.json.{dead}','.m.note',f'.m.{elsewhere}']
    for o in (*keep,f'.m.{dead}',f'.m.{elsewhere}y'): (d/o).mkdir()
    os.utime(d/f'.m.{elsewhere}y', (0,time.time()-4000))
    save_artefact(saved, {}, {'w':torch.ones(3)})
    assert sorted(o.name for o in d.iterdir())==sorted(['m',*keep])

def test_what_does_not_fit_is_named(lm):
    sd = dict(lm.state_dict())
    before = {k:t.clone() for k,t in sd.items()}
    def refuses(ts, msg):
        with pytest.raises(ArtefactError, match=msg): load_tensors(lm, ts, 'this file')
        assert same(lm.state_dict(), before)
    no_bias = {k:t+1 for k,t in sd.items() if 'bias' not in k}
    refuses(no_bias, r'this file does not fit LanguageModel: tensors 5 missing \(encoder.layers.0.bias_ih, ...\)')
    refuses({**sd,'x':sd['decoder.bias']}, r'1 not expected \(x\)')
    refuses({**sd,'decoder.bias':torch.ones(3)}, r'decoder.bias is \(3,\), not \(50,\)')
    refuses({**sd,'encoder.embed.weight':torch.ones(49,16)}, 'vocabulary of 49 tokens, the model one of 50')

words = st.text('abcdefg', min_size=1, max_size=2)
@settings(max_examples=50, deadline=None)
@given(old=st.lists(words, min_size=1, unique=True), new=st.lists(words, min_size=1, unique=True), data=st.data())
def test_match_vocab(old, new, data):
    w,b = torch.randn(len(old), 3),torch.randn(len(old))
    counts = data.draw(st.lists(st.integers(1, 9), min_size=len(new), max_size=len(new)))
    nw,nb,rep = match_vocab(old, new, w, b, counts)
    for i,t in enumerate(new):
        torch.testing.assert_close(nw[i], w[old.index(t)] if t in old else w.mean(0))
        torch.testing.assert_close(nb[i], b[old.index(t)] if t in old else b.mean())
    kept = [t in old for t in new]
    assert (rep.kept,rep.new)==(sum(kept),len(new)-sum(kept))
    assert rep.share==pytest.approx(sum(c for c,k in zip(counts, kept) if k)/sum(counts))
    assert '\n' not in str(rep)

def test_match_vocab_refuses():
    with pytest.raises(ArtefactError, match='3 tokens cannot belong to an embedding of 2 rows'):
        match_vocab(list('abc'), ['a'], torch.ones(2,2))
    with pytest.raises(ArtefactError, match='2 counts for 1 tokens'): match_vocab(['a'], ['a'], torch.ones(1,2), counts=[1,2])

def test_match_equals_fastai(lm):
    from fastai.text.learner import match_embeds
    old,new = [f'w{i}' for i in range(50)],[f'w{i}' for i in range(0,90,3)]
    ts,rep = match_tensors(lm.state_dict(), old, new)
    fa = match_embeds({k:t.clone() for k,t in export_fastai(lm).items()}, old, new)
    assert torch.equal(ts['encoder.embed.weight'], fa['0.encoder.weight'])
    assert torch.equal(ts['decoder.bias'], fa['1.decoder.bias'])
    load_tensors(language_model(30, **size), ts)
    assert rep.kept==17

@pytest.fixture(scope='module')
def fastai_files(tmp_path_factory):
    "Weights and vocabulary as fastai itself saves them"
    from fastai.text.all import AWD_LSTM,awd_lstm_lm_config,get_language_model
    from fastcore.xtras import save_pickle
    d = tmp_path_factory.mktemp('fastai')
    m = get_language_model(AWD_LSTM, 48, config={**awd_lstm_lm_config,**size,'n_layers':3})
    vocab = ['xxunk','xxpad']+[f'wört{i}' for i in range(40)]+['xxfake']*6
    torch.save(m.state_dict(), d/'lm.pth')
    torch.save(m.state_dict(), d/'old.pth', _use_new_zipfile_serialization=False)
    torch.save(m[0].state_dict(), d/'enc.pth')
    torch.save({'model':m.state_dict()}, d/'with_opt.pth')
    save_pickle(d/'itos.pkl', vocab)
    return d,m.eval(),vocab

@pytest.mark.parametrize('name', ['lm','old','with_opt','enc'])
def test_fastai_files_load(fastai_files, name):
    d,m,vocab = fastai_files
    fa = load_fastai_pth(d/f'{name}.pth', d/'itos.pkl')
    assert fa.vocab==vocab and fa.config['kind']==('encoder' if name=='enc' else 'language_model')
    x = torch.randint(0, 48, (2,9))
    m.reset()
    with torch.no_grad():
        if name=='enc': got,want = load_tensors(language_model(**fa.config['model']).encoder, sub_tensors(fa.tensors)).eval()(x).out,m[0](x)
        else:
            ours = load_tensors(language_model(**fa.config['model']), fa.tensors).eval()
            got,want = ours.logits(ours(x)),m(x)[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)

def test_export_loads_in_fastai(fastai_files, lm):
    from fastai.text.all import AWD_LSTM,awd_lstm_lm_config,get_language_model
    m = get_language_model(AWD_LSTM, 50, config={**awd_lstm_lm_config,**size})
    assert m.load_state_dict(export_fastai(lm), strict=False).unexpected_keys==[]
    assert set(m.state_dict())==set(export_fastai(lm))
    x = torch.randint(0, 50, (2,9))
    m.eval()
    m.reset()
    with torch.no_grad(): torch.testing.assert_close(lm.eval().logits(lm(x)), m(x)[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="no 'qrnn' layers"): export_fastai(language_model(50, cell='qrnn', **size))

class Harm: # builds a file as an attacker would; it is never unpickled
    def __reduce__(self): return os.system,('echo harm > harmed',)

def other_pickles():
    import pickle
    from collections import OrderedDict,defaultdict
    rec = ['a']
    rec.append(rec)
    objs = [Harm(),[Harm()],['a',1],{'a':1},('a',),'a',[['a']],OrderedDict(a=1),defaultdict(int),rec,[b'a'],[None]]
    return [(pickle.dumps(o, protocol=p), f'{i}-{p}') for i,o in enumerate(objs) for p in (0,2,4)]

broken = enumerate((b'', b'junk', b'\x80\x04]', b'.', b'\x80\x02h\x05.'))
@pytest.mark.parametrize('b', [pytest.param(b, id=str(i)) for b,i in other_pickles()+[(b,i) for i,b in broken]])
def test_other_pickles_are_refused(tmp_path, b, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'v.pkl').write_bytes(b)
    with pytest.raises(ArtefactError, match='is not just a pickled list of words'): read_pickled_words(tmp_path/'v.pkl')
    assert not (tmp_path/'harmed').exists()

@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.text(max_size=8), max_size=30), protocol=st.integers(0, 5), twice=st.booleans())
def test_pickled_words_of_every_protocol(words, protocol, twice, tmp_path_factory):
    import pickle
    words = words+words[:3] if twice else words
    f = tmp_path_factory.mktemp('p')/'v.pkl'
    f.write_bytes(pickle.dumps(words, protocol=protocol))
    assert read_pickled_words(f)==words

def test_other_weight_files_are_refused(tmp_path, fastai_files):
    d,m,vocab = fastai_files
    torch.save({'a':Harm()}, tmp_path/'harm.pth')
    with pytest.raises(ArtefactError, match='holds more than tensors'): load_fastai_pth(tmp_path/'harm.pth', vocab)
    torch.save({'a':torch.ones(2)}, tmp_path/'else.pth')
    with pytest.raises(ArtefactError, match='not a one-directional AWD-LSTM'): load_fastai_pth(tmp_path/'else.pth', vocab)
    torch.save(torch.ones(2), tmp_path/'t.pth')
    with pytest.raises(ArtefactError, match='not a dict of tensors'): load_fastai_pth(tmp_path/'t.pth', vocab)
    (tmp_path/'cut.pth').write_bytes((d/'lm.pth').read_bytes()[:900])
    with pytest.raises(ArtefactError, match='damaged'): load_fastai_pth(tmp_path/'cut.pth', vocab)
    with pytest.raises(ArtefactError, match='47 tokens cannot belong'): load_fastai_pth(d/'lm.pth', vocab[1:])

def test_no_pickle_in_the_package():
    for m in ('checkpoint','fastai_weights'):
        src = Path(checkpoint.__file__).with_name(f'{m}.py').read_text()
        assert 'import pickle\n' not in src and 'torch.save' not in src
        assert src.count('torch.load(')==src.count('weights_only=True)')
