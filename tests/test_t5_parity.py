"Ours against transformers' T5 from the same weights: buckets, logits, loss, gradients, greedy and beam search, folders; packed rows; faults of folders"
import importlib,json,pickle,random,shutil,sys
import pytest,torch
try: importlib.import_module('torchvision')
except (ImportError,RuntimeError): sys.modules['torchvision'] = None # built for another torch: transformers can do without, if it does not see it
import torch.nn.functional as F
from safetensors.torch import load_file,save_file
from transformers import T5Config as TheirConfig,T5EncoderModel,T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention
from ulmfit_t5.core import seed_everything
from ulmfit_t5.data.packing import collate_packed
from ulmfit_t5.models.attention import *
from ulmfit_t5.models.checkpoint import ArtefactError
from ulmfit_t5.models.generate import *
from ulmfit_t5.models.hf_t5 import *
from ulmfit_t5.models.layers import Linear
from ulmfit_t5.models.packed import *
from ulmfit_t5.models.t5 import *

V = 80
VERSIONS = {'1.0':dict(), '1.1':dict(gated=True, tied=False), 'tied without scale':dict(scaled=False)}

def config(seed=0, **kw):
    "A tiny configuration at random"
    r = random.Random(seed)
    return T5Config(**dict(vocab_sz=V, d_model=r.choice((16,24,32)), d_ff=r.choice((24,64)), n_layers=r.randint(1, 3),
        n_dec_layers=r.randint(1, 3), n_heads=r.choice((1,2,4)), d_kv=r.choice((4,8)), n_buckets=r.choice((8,16,32)),
        max_distance=r.choice((20,64,128)), p=0.) | kw)

def pair(path, seed=0, **kw):
    "Our model with weights that make a visible difference, and theirs that read it from a folder"
    seed_everything(seed)
    m = T5(config(seed, **kw)).eval()
    with torch.no_grad():
        for k,p in m.named_parameters():
            if 'norm' in k: p.add_(.2*torch.randn_like(p))
            if '.bias.' in k: p.mul_(4)
    return m,T5ForConditionalGeneration.from_pretrained(save_hf_t5(path, m)).eval()

def batch(b=3, t=9, u=7):
    "Inputs and targets with padding"
    x,y = torch.randint(2, V, (b,t)),torch.randint(2, V, (b,u))
    x[1,t-3:],y[2,u-4:] = 0,0
    return x,y

@pytest.mark.parametrize('both', [True,False])
@pytest.mark.parametrize('n,far', [(32,128),(16,64),(8,20),(32,256)])
def test_buckets(both, n, far):
    rel = torch.arange(-600, 601)
    assert torch.equal(relative_buckets(rel, both, n, far), T5Attention._relative_position_bucket(rel, both, n, far))

@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('seed', [1,2,3])
def test_logits_loss_and_gradients(tmp_path, seed, version):
    ours,theirs = pair(tmp_path/'t5', seed, **VERSIONS[version])
    x,y = batch()
    want = theirs(input_ids=x, attention_mask=(x>0).long(), labels=y.masked_fill(y==0, -100))
    out = ours(x, y)
    torch.testing.assert_close(ours.logits(out)[y>0], want.logits[y>0], atol=1e-4, rtol=1e-4)
    loss = T5Loss(ours, chunk=5)(out, y)
    torch.testing.assert_close(loss, want.loss, atol=1e-4, rtol=1e-4)
    loss.backward()
    want.loss.backward()
    grads = dict(theirs.named_parameters())
    for k,p in ours.named_parameters(): torch.testing.assert_close(p.grad, grads[hf_name(k)].grad, atol=1e-4, rtol=1e-4, msg=lambda s, k=k: f'{k}: {s}')

@pytest.mark.parametrize('version', VERSIONS)
def test_onednn_gives_the_gradients_of_mkl(version):
    "Of rows enough, with and without checkpoints"
    seed_everything(11)
    m = T5(config(11, **VERSIONS[version])).train()
    lins,(x,y),res = [l for l in m.modules() if type(l) is Linear],batch(10, 13, 9),[]
    for cls in (Linear,torch.nn.Linear):
        for l in lins: l.__class__ = cls
        for on in (False,True):
            loss = T5Loss(m, z_loss=1e-3)(m.checkpointing(on)(x, y))
            res.append((loss.detach(),*torch.autograd.grad(loss, list(m.parameters()))))
    assert lins and x.numel()>64<y.numel()
    for got in res[:-1]: torch.testing.assert_close(got, res[-1], atol=1e-6, rtol=1e-4)

def ids_of(row):
    "Their row of ids as we give it: without the start, up to the end"
    row = row.tolist()[1:]
    return row[:row.index(1)] if 1 in row else row

def wordy(ours, theirs):
    "Make some texts end before they are cut"
    for m in (ours.head_weight,theirs.get_output_embeddings().weight): m.data[1] *= 2.5

@pytest.mark.parametrize('version', VERSIONS)
def test_greedy_and_beams(tmp_path, version):
    ended = set()
    for seed in (4,5,6,7):
        ours,theirs = pair(tmp_path/'t5', seed, n_dec_layers=None, **VERSIONS[version])
        theirs.generation_config.pad_token_id = 0
        if seed%2: wordy(ours, theirs)
        x,_ = batch(b=6)
        kw = dict(attention_mask=(x>0).long(), max_new_tokens=12, do_sample=False)
        got,fast = generate(ours, x, 12),packed(ours)
        theirs_ids = theirs.generate(x, **kw)
        rows = [ids_of(o)[:len(g)] if not e else ids_of(o) for o,g,e in zip(theirs_ids, got.ids, got.finished)]
        assert got.ids==rows==generate(fast, x, 12).ids
        ended |= set(got.finished.tolist())
        for alpha in (0.,1.,-.5):
            want = theirs.generate(x, num_beams=3, length_penalty=alpha, return_dict_in_generate=True, output_scores=True, **kw)
            mine = beam_search(ours, x, 12, n_beams=3, alpha=alpha, penalty='power')
            assert mine.ids==beam_search(fast, x, 12, n_beams=3, alpha=alpha, penalty='power').ids
            assert mine.ids==[ids_of(o)[:len(g)] if not e else ids_of(o) for o,g,e in zip(want.sequences, mine.ids, mine.finished)], (seed,alpha)
            torch.testing.assert_close(mine.logp, want.sequences_scores, atol=1e-4, rtol=1e-4)
    assert ended=={True,False}

@pytest.mark.parametrize('dtype,eps', [('bf16',.3),('fp16',.02)])
@pytest.mark.parametrize('arch', [o for o in ARCHS if o!='encoder'])
def test_packed_in_16_bits(arch, dtype, eps):
    "Log-probabilities near those in 32 bits, of given targets and of what is written"
    if dtype=='fp16' and 'fbgemm' not in torch.backends.quantized.supported_engines: pytest.skip('weights in fp16 are for x86 CPUs')
    seed_everything(10)
    m = T5(config(10, arch=arch)).eval()
    with torch.no_grad(): m.embed.weight[0].zero_() # padding, which would be taken for the end, is not written
    fast,(x,y) = packed(m, dtype),batch()
    assert (score_targets(fast, x, y)-score_targets(m, x, y)).abs().max()<eps
    g = generate(fast, x, 9)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(o+[1]*bool(e)) for o,e in zip(g.ids, g.finished)], True)
    assert (score_targets(m, x, ids)-g.logp).abs().max()<3*eps

def test_scores_are_their_losses(tmp_path):
    ours,theirs = pair(tmp_path/'t5', 8)
    x,y = batch()
    got = score_targets(ours, x, y)
    for i in range(len(x)):
        lab = y[i:i+1,y[i]>0]
        want = -theirs(input_ids=x[i:i+1,x[i]>0], labels=lab).loss*lab.shape[1]
        torch.testing.assert_close(got[i], want, atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize('arch', [o for o in ARCHS if o!='encoder'])
def test_packed_rows_are_their_examples(arch):
    "The arrays of the data layer: hidden states, and the gradients of the loss of all rows"
    seed_everything(9)
    m = T5(config(9, arch=arch, n_layers=2, n_dec_layers=2)).eval()
    xs,ys = ([torch.randint(2, V, (n,)).tolist() for n in o] for o in ((3,5,2,4),(2,4,3,1)))
    p = collate_packed(xs, ys, [[0,1],[2,3]], 10, 8)
    out = m(p.inputs, p.targets, p.input_segments, p.target_segments)
    alone = [m(torch.tensor([x]), torch.tensor([y])) for x,y in zip(xs, ys)]
    told = torch.cat([o.hidden[o.labels>=0] for o in alone])
    torch.testing.assert_close(out.hidden[out.labels>=0], told, atol=1e-5, rtol=1e-5)
    want = F.cross_entropy(m.logits(told), torch.cat([o.labels[o.labels>=0] for o in alone]))
    ps = list(m.parameters())
    for g,w in zip(*(torch.autograd.grad(o, ps, allow_unused=True) for o in (T5Loss(m)(out),want))):
        if w is not None: torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('version', VERSIONS)
def test_theirs_opens_in_ours(tmp_path, version):
    kw = VERSIONS[version]
    theirs = T5ForConditionalGeneration(TheirConfig(vocab_size=V, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj='gated-gelu' if kw.get('gated') else 'relu', tie_word_embeddings=version=='1.0')).eval()
    theirs.save_pretrained(tmp_path/'one')
    theirs.save_pretrained(tmp_path/'many', max_shard_size='8KB')
    assert (tmp_path/'many'/'model.safetensors.index.json').is_file()
    x,y = batch()
    want = theirs(input_ids=x, attention_mask=(x>0).long(), labels=y).logits[y>0]
    for k in ('one','many'): torch.testing.assert_close((m:=load_hf_t5(tmp_path/k)).logits(m(x, y))[y>0], want, atol=1e-4, rtol=1e-4)

def test_ours_opens_in_theirs_in_shards_and_half_precision(tmp_path):
    m = T5(config(3))
    (tmp_path/'tok').mkdir()
    (tmp_path/'tok'/'spiece.model').write_bytes(b'pieces')
    p = save_hf_t5(tmp_path/'t5', m, tmp_path/'tok', dtype='bf16', shard_mb=.004)
    assert (p/'spiece.model').read_bytes()==b'pieces' and len(list(p.glob('model-*.safetensors')))>1
    theirs = T5ForConditionalGeneration.from_pretrained(p)
    assert theirs.dtype==torch.bfloat16 and torch.equal(theirs.shared.weight, m.embed.weight.bfloat16())

def test_an_encoder_alone(tmp_path):
    m = T5(config(3, arch='encoder')).eval()
    x,_ = batch()
    theirs = T5EncoderModel.from_pretrained(save_hf_t5(tmp_path/'enc', m)).eval()
    want = theirs(input_ids=x, attention_mask=(x>0).long()).last_hidden_state
    torch.testing.assert_close(m(x).hidden[x>0], want[x>0], atol=1e-4, rtol=1e-4)
    whole = T5(config(3)).eval()
    got = load_hf_t5(save_hf_t5(tmp_path/'all', whole), arch='encoder')
    torch.testing.assert_close(got(x).hidden, whole.encode(x))

def tensors(p, f):
    "Rewrite the tensors of a folder"
    ts = load_file(p/'model.safetensors')
    f(ts)
    save_file(ts, p/'model.safetensors')
def entry(**kw): return lambda p: (p/'config.json').write_text(json.dumps(json.loads((p/'config.json').read_text())|kw))
K = 'encoder.block.0.layer.0.SelfAttention.q.weight'
def no_weights(p): (p/'model.safetensors').unlink()
def only_pickle(p): (p/'model.safetensors').rename(p/'pytorch_model.bin')
def disguised(p): (p/'model.safetensors').write_bytes(b'PK\x03\x04'+bytes(99))
def truncated(p): (p/'model.safetensors').write_bytes((p/'model.safetensors').read_bytes()[:-9])
def index(where): return lambda p: (p/'model.safetensors.index.json').write_text(json.dumps(where))

FAULTS = {'no config':(lambda p: (p/'config.json').unlink(), 'has no config.json'),
    'broken config':(lambda p: (p/'config.json').write_text('{'), 'not readable JSON'), 'another model':(entry(model_type='bart'), "model_type 'bart'"),
    'another feed-forward':(entry(feed_forward_proj='gated-silu'), "'gated-silu'"), 'no layers':(entry(num_layers=None), 'no whole number for num_layers'),
    'dropout':(entry(dropout_rate=2.), 'dropout p=2.0'), 'no weights':(no_weights, 'no model.safetensors'),
    'a pickle':(only_pickle, 'pytorch_model.bin, a pickle that could run code; it is not opened'), 'a zip in disguise':(disguised, 'could run code'),
    'truncated':(truncated, 'not readable as safetensors'), 'missing':(lambda p: tensors(p, lambda t: t.pop(K)), f'1 missing .{K}'),
    'no embedding':(lambda p: tensors(p, lambda t: t.pop('shared.weight')), 'shared.weight is missing'),
    'extra':(lambda p: tensors(p, lambda t: t.update(more=torch.ones(1))), '1 not expected .more'),
    'of another shape':(lambda p: tensors(p, lambda t: t.update({K:torch.ones(3, 3)})), f'{K} is .3, 3., not'),
    'vocabulary':(entry(vocab_size=V+1), f'a vocabulary of {V} rows, and its config.json says {V+1}'),
    'missing shard':(index(dict(weight_map={K:'model-00001-of-00002.safetensors'})), 'lacks model-00001-of-00002.safetensors'),
    'shard elsewhere':(index(dict(weight_map={K:'../x.safetensors'})), 'outside of its folder'), 'index without a map':(index({}), 'has no weight_map')}

class Runs:
    "What a pickle can do to who opens it"
    def __init__(self, path): self.path = path
    def __reduce__(self): return open,(str(self.path),'w')

@pytest.mark.parametrize('name', ['pytorch_model.bin','model.safetensors','model-00001-of-00001.safetensors'])
@pytest.mark.parametrize('how', ['torch','pickle'])
def test_pickles_are_never_opened(folder, tmp_path, name, how):
    "Beside the weights, in their place, or under their name in an index"
    p,trap = tmp_path/'t5',tmp_path/'opened'
    shutil.copytree(folder, p)
    (p/'model.safetensors').unlink()
    if how=='torch': torch.save({K:Runs(trap)}, p/name)
    else: (p/name).write_bytes(pickle.dumps({K:Runs(trap)}))
    if name.startswith('model-'): index(dict(weight_map={K:name}))(p)
    with pytest.raises(ArtefactError, match='could run code|not readable as safetensors'): load_hf_t5(p)
    assert not trap.exists()

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return save_hf_t5(tmp_path_factory.mktemp('hf')/'t5', T5(config(3)))

@pytest.mark.parametrize('name', FAULTS)
def test_faults(folder, tmp_path, name):
    p = tmp_path/'t5'
    shutil.copytree(folder, p)
    load_hf_t5(p)
    spoil,words = FAULTS[name]
    spoil(p)
    with pytest.raises(ArtefactError, match=words): load_hf_t5(p)

def test_a_failed_save_leaves_the_folder(folder, tmp_path, monkeypatch):
    p = tmp_path/'t5'
    shutil.copytree(folder, p)
    before = (p/'model.safetensors').read_bytes()
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('ulmfit_t5.models.hf_t5.save_file', full)
    with pytest.raises(OSError, match='could not be saved'): save_hf_t5(p, T5(config(4)))
    assert (p/'model.safetensors').read_bytes()==before and [o.name for o in tmp_path.iterdir()]==['t5']
