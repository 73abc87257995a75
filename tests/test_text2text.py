"Text to text on toy languages: what is learned, frozen, saved, resumed and refused"
import importlib,io,shutil,sys
import numpy as np,pandas as pd,pytest,sentencepiece,torch
try: importlib.import_module('torchvision')
except (ImportError,RuntimeError): sys.modules['torchvision'] = None # built for another torch: transformers can do without, if it does not see it

from fastai.callback.core import Callback
from transformers import T5ForConditionalGeneration,T5Tokenizer
from transformers.optimization import Adafactor as PeerAdafactor
from ulmfit_t5.core import seed_everything
from ulmfit_t5.data.mixtures import TaskMixture
from ulmfit_t5.data.task_types import ClassTask,Task
from ulmfit_t5.data.tokenizer import SentencePieceTokenizer,load_tokenizer,train_subword
from ulmfit_t5.models.checkpoint import ArtefactError
from ulmfit_t5.models.hf_t5 import save_hf_t5
from ulmfit_t5.models.t5 import T5,T5Config
from ulmfit_t5.pairs import *
from ulmfit_t5.text2text import *
from ulmfit_t5.train.adafactor import Adafactor,factored_dims
from ulmfit_t5.train.callbacks import NonFiniteError
from ulmfit_t5.train.resume import Resumable
from ulmfit_t5.train.unfreeze import UnfreezeSchedule
from ulmfit_t5.writer import *

COLORS,THINGS = ('red','blue','grey','pink'),dict(animal=('cat','dog','cow','hen'), thing=('mat','box','cup','pen'))
TASK = ClassTask('kind', ['text'], ['animal','thing'], missing=(), numbered=False)

@pytest.fixture(scope='module')
def toy():
    "Texts about animals and things, each noun with each colour and verb"
    rows = [(f'the {c} {n} {v}', k) for k,ns in THINGS.items() for n in ns for c in COLORS for v in ('is here','is lost','was found')]
    return pd.DataFrame(rows, columns=['text','label'])

@pytest.fixture(scope='module')
def tok(toy): return train_subword([f'kind text: {t} {l} reverse' for t,l in zip(toy.text, toy.label)], vocab_sz=340, hard_vocab_limit=False, n_threads=1)

def config(tok, **kw): return vocab_config(tok, **dict(d_model=32, d_ff=64, n_layers=2, n_heads=2, d_kv=16, p=0.)|kw)

def loaders(toy, tok, **kw): return Text2TextDataLoaders.from_source(toy, tok, **dict(task=TASK, bs=16, inputs_length=32, targets_length=12)|kw)

def learner(dls, **kw):
    seed_everything(0)
    return text2text_learner(dls, config(dls.tok), **kw)

def quiet(learn, f, *args, **kw):
    with learn.no_bar(), learn.no_logging(): return getattr(learn, f)(*args, **kw)

def weights(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}

def same(a, b): return [k for k in a if torch.equal(a[k], b[k])]

@pytest.fixture(scope='module')
def trained(toy, tok):
    "A learner before and after 60 epochs"
    learn = learner(loaders(toy, tok))
    before = learn.evaluate(constrained=True)['accuracy'],learn.evaluate(max_len=6)
    quiet(learn, 'fit_sched', 60, 'cosine', lr_max=.01)
    return learn,before


class TestAdafactor:
    @pytest.mark.parametrize('beta,wd,scale', [(None,0.,True),(.9,.1,True),(None,.1,False)])
    def test_as_in_transformers(self, beta, wd, scale):
        rng = torch.Generator().manual_seed(0)
        draw = lambda s,k=1.: torch.randn(*s, generator=rng)*k
        shapes = ((7,),(6,5),(5,6),(3,5,6),(1,4))
        ours = [draw(s, k).requires_grad_() for s,k in zip(shapes, (1,3,.01,1,1e-5))]
        theirs = [p.detach().clone().requires_grad_() for p in ours]
        a = Adafactor(ours, lr=.03, wd=wd, beta=beta, scale=scale, factor_from=1)
        b = PeerAdafactor(theirs, lr=.03, weight_decay=wd, beta1=beta, scale_parameter=scale, relative_step=False, warmup_init=False)
        for i in range(10):
            for p,q in zip(ours, theirs):
                p.grad = draw(p.shape, 10.**(i%4-2))
                q.grad = p.grad.clone()
            a.step()
            b.step()
        for p,q in zip(ours, theirs): torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)

    def test_only_long_matrices_are_factored(self):
        p,q = (torch.randn(s).requires_grad_() for s in ((128,200),(127,200)))
        opt = Adafactor([p,q])
        for o in (p,q): o.grad = torch.randn_like(o)
        opt.step()
        assert sum(v.numel() for k,v in opt.state[p].items() if k!='step')==328
        assert opt.state[q]['sqr_avg'].shape==q.shape
        assert factored_dims((64,)) is None


class TestLoaders:
    @pytest.mark.parametrize('pack', [False,True])
    def test_each_example_once_an_epoch(self, toy, tok, pack):
        dls = loaders(toy, tok, pack=pack, inputs_length=64, targets_length=24)
        for dl,ex in ((dls.train,dls.examples),(dls.valid,dls.valid_examples)):
            got = [(ids_text(x, tok, dls.sp),ids_text(y, tok, dls.sp)) for b in dl for x,y in batch_pairs(b)]
            assert sorted(got)==sorted(ex['kind'].pairs)

    def test_a_mixture_draws_at_its_rates(self, toy, tok):
        few = toy[:4].assign(label='animal')
        dls = Text2TextDataLoaders.from_source({'few':few, 'many':toy}, tok, task=TASK, valid={'few':few}, bs=8,
            mixture=TaskMixture('equal', dict(few=4, many=len(toy)), T=float('inf')))
        drawn = np.concatenate([dls.train.draw(e) for e in range(40)])
        assert abs((drawn<4).mean()-.5)<.02
        assert set(drawn)==set(range(4+len(toy)))

    def test_long_inputs_are_counted(self, toy, tok):
        dls = loaders(toy, tok, inputs_length=12, valid=toy[:4])
        assert all(len(o)<=12 and o[-1]==tok.eos_id for o in dls.train.x)
        assert 'longer than 12 tokens and are cut' in dls.notes[0]
        wide = loaders(toy, tok, inputs_length=12, valid=toy[:4], long='window')
        assert len(wide.train.x)>len(dls.train.x) and 'windows' in wide.notes[0]

    def test_what_is_cut_is_said_once(self, toy, tok, capsys):
        "By the loaders, with the tasks that it was cut of, and by a call, for all tasks together"
        two = dict(first=toy[:6], second=toy[6:9])
        dls = Text2TextDataLoaders.from_source(two, tok, task=TASK, valid=two, inputs_length=12, targets_length=12)
        said = capsys.readouterr().out.strip().split('\n')
        assert len(said)==1 and '9 of 9 inputs (first 6, second 3) are longer than 12 tokens and are cut; to validate: 9 of 9' in said[0]
        learner(dls).evaluate(max_len=2)
        said = capsys.readouterr().out.strip().split('\n')
        assert len(said)==1 and all(f'{k}: {n} of {n} inputs are longer' in said[0] for k,n in (('first',6),('second',3)))

    @pytest.mark.parametrize('row,text', [(dict(text=' ', label='thing'),'its input is empty'),(dict(text='cat', label=''),'is empty')])
    def test_gaps_are_refused(self, toy, tok, row, text):
        with pytest.raises(ValueError, match=text): loaders(pd.concat([toy, pd.DataFrame([row])], ignore_index=True), tok, valid=toy[:4])

    def test_unknown_tasks_and_labels(self, toy, tok):
        with pytest.raises(ValueError, match="'mnli'"): Text2TextDataLoaders.from_source('mnly', tok)
        odd = ClassTask('kind', ['text'], ['animal','\u200b'], missing=(), numbered=False)
        with pytest.raises(ValueError, match='no token at all|comes back'): loaders(toy[toy.label=='animal'], tok, task=odd)


class TestLearning:
    def test_learns_what_is_there_to_learn(self, trained):
        learn,(chance,free) = trained
        after = learn.evaluate()
        assert chance<80 and free['accuracy']<20 and free.n_outside>0
        assert after['accuracy']>=95 and after.n_outside==0

    def test_learns_to_copy_what_it_must_look_for(self, toy, tok):
        df = pd.DataFrame(dict(input=toy.text, target=[t.split()[1] for t in toy.text]))
        learn = learner(Text2TextDataLoaders.from_source(df, tok, bs=16, pack=True, inputs_length=64, targets_length=24))
        before = learn.evaluate(max_len=4)['exact_match']
        quiet(learn, 'fit_sched', 50, 'cosine', lr_max=.02)
        assert before<20 and learn.evaluate()['exact_match']>=90

    def test_windows_and_rows(self, trained):
        learn,_ = trained
        long = ' '.join(['the cat is lost']*12)
        w = learn.writer(long='window', inputs_length=24, say=None)
        assert w.write(w.inputs([long,'the mat is here'])).n_long==1
        assert w.predict(long)=='animal'
        assert learn.predict(dict(text='the pink pen is lost'))=='thing'

    def test_constrained_answers_are_labels(self, toy, tok):
        raw = learner(loaders(toy, tok))
        texts = [*toy.text[:5],'?','nothing of the kind '*9]
        assert set(raw.predict(texts, constrained=True))<=set(TASK.labels)
        assert raw.predict(texts, constrained=True, labels=['mat'])==['mat']*7
        assert raw.evaluate(constrained=True).n_outside==0
        assert raw.writer().probs(texts).sum(1)==pytest.approx(1)

    def test_an_answer_that_never_ends(self, toy, tok):
        learn,said = learner(loaders(toy, tok)),[]
        logits = learn.model.logits
        learn.model.logits = lambda h: logits(h).index_fill(-1, torch.tensor([tok.eos_id]), -torch.inf)
        got = learn.writer(max_len=3, say=said.append).write(['the cat','the dog'])
        assert not got.finished.any() and said==[got.note]
        assert '2 of 2 answers did not end within 3 tokens' in got.note


class TestTraining:
    def test_frozen_groups_do_not_move(self, toy, tok):
        learn = learner(loaders(toy, tok))
        was,n = weights(learn),len(learn.model.groups())
        names = {id(p):k for k,p in learn.model.named_parameters()}
        frozen = {names[id(p)] for g in learn.model.groups()[:-1] for p in g}
        quiet(learn, 'fit_unfreeze', UnfreezeSchedule(n, UnfreezeSchedule.gradual(n).stages[:1]))
        assert set(same(was, weights(learn)))==frozen

    def test_the_embedding_stays_open(self, toy, tok):
        learn = learner(loaders(toy, tok), opt_func='adamw')
        was,n = weights(learn),len(learn.model.groups())
        quiet(learn, 'fit_unfreeze', UnfreezeSchedule(n, t5_unfreeze(n, 2).stages[:1]))
        kept = same(was, weights(learn))
        assert 'embed.weight' not in kept and any('blocks.0' in k for k in kept) and not any('blocks.1' in k for k in kept)

    @pytest.mark.parametrize('opt', ['adafactor','adamw'])
    def test_goes_on_where_it_was(self, toy, tok, tmp_path, opt):
        one = lambda: learner(loaders(toy, tok), opt_func=opt)
        whole,cut,rest = one(),one(),one()
        quiet(whole, 'fit_one_cycle', 2, 1e-2)
        with pytest.raises(KeyboardInterrupt): quiet(cut, 'fit_one_cycle', 2, 1e-2, cbs=[Resumable(tmp_path, every_steps=3, say=None),Kill()])
        quiet(rest, 'fit_one_cycle', 2, 1e-2, cbs=Resumable(tmp_path, every_steps=3, say=None))
        a,b = weights(whole),weights(rest)
        assert len(same(a, b))==len(a) and len(same(a, weights(cut)))<len(a)

    def test_a_loss_that_is_no_number(self, toy, tok):
        learn = learner(loaders(toy, tok))
        with torch.no_grad(): learn.model.embed.weight[tok.eos_id] = float('nan')
        with pytest.raises(NonFiniteError): quiet(learn, 'fit', 1)

    def test_adapt_then_tune(self, toy, tok, tmp_path):
        data = dict(inputs_length=32, bs=8)
        seed_everything(0)
        pre = span_corruption_learner(toy.text.tolist(), config(tok), tok=tok, data=data)
        first = quiet(pre, 'validate')[0]
        quiet(pre, 'fit_one_cycle', 4, 1e-2)
        assert quiet(pre, 'validate')[0]<first-.5
        pre.save(tmp_path/'general')
        adapt = span_corruption_learner(toy.text.tolist()[::2], tmp_path/'general', data=data|dict(objective_name='iid_15_u_u'))
        assert len(same(weights(pre), weights(adapt)))==len(weights(pre))
        quiet(adapt, 'fit_one_cycle', 1, 1e-3)
        adapt.save(tmp_path/'adapted')
        learn = text2text_learner(loaders(toy, tok), tmp_path/'adapted')
        assert len(same(weights(learn), weights(adapt)))==len(weights(learn))
        quiet(learn, 'fit_unfreeze', UnfreezeSchedule.gradual(3, 1, 1, lr=1e-2))
        assert not same(weights(learn), weights(adapt))


class Kill(Callback):
    "Ends a fit as a hand on the keyboard does, in the middle of an epoch"
    order = 96
    def after_batch(self):
        if self.training and self.train_iter==7: raise KeyboardInterrupt


class TestFiles:
    def test_the_same_answers(self, trained, toy, tok, tmp_path):
        learn,_ = trained
        texts = toy.text.tolist()[::5]
        learn.save(tmp_path/'m', epochs=30)
        w = TextWriter.load(tmp_path/'m', say=None)
        assert w.predict(texts)==learn.predict(texts) and (w.probs(texts)==learn.writer().probs(texts)).all()
        assert learner(loaders(toy, tok)).load(tmp_path/'m').predict(texts)==learn.predict(texts)
        assert not [p for p in (tmp_path/'m').iterdir() if p.suffix in ('.pkl','.pth','.bin')]

    def test_transformers_writes_the_same(self, trained, tmp_path):
        learn,_ = trained
        learn.save_hf(tmp_path/'hf')
        peer = T5ForConditionalGeneration.from_pretrained(tmp_path/'hf')
        x = torch.from_numpy(encode_inputs(learn.tok, learn.writer().inputs(['the grey hen is lost']))[0])[None]
        ids = peer.generate(x, max_new_tokens=8, do_sample=False)[0]
        assert ids_text(ids, learn.tok, learn.dls.sp)==learn.predict('the grey hen is lost')=='animal'

    def test_a_folder_without_its_manifest(self, trained, tmp_path):
        trained[0].save(tmp_path/'m')
        (tmp_path/'m'/'manifest.json').unlink()
        with pytest.raises(ArtefactError, match='manifest.json is not there'): TextWriter.load(tmp_path/'m')

    def test_another_vocabulary(self, trained, toy, tmp_path):
        learn,_ = trained
        learn.save(tmp_path/'m')
        other = train_subword(['kind text: animal thing', *toy.text]*2, vocab_sz=320, hard_vocab_limit=False, n_threads=1)
        with pytest.raises(ArtefactError, match='another vocabulary'): text2text_learner(loaders(toy, other), tmp_path/'m')

    def test_a_task_with_words_of_its_own(self, tok, tmp_path):
        model = load_t5(config(tok), tok)
        task = Task('shout', ['text'], source=lambda row: row['text'].upper())
        save_t5(tmp_path/'m', model, tok, task)
        w = TextWriter.load(tmp_path/'m')
        assert w.task is None and w.inputs(['cat'])==['cat']
        with pytest.raises(ValueError, match='labels='): w.predict('cat', constrained=True)
        with pytest.raises(ValueError, match='a row can only be read for a task'): w.predict(dict(text='cat'))
        with pytest.raises(ValueError, match='text 0 is'): w.predict([''])


@pytest.fixture(scope='module')
def google(toy, tmp_path_factory):
    "A folder as T5's are: config.json, safetensors with rows that no token has, and a spiece.model with padding, end and unknown on ids 0, 1 and 2"
    d,out = tmp_path_factory.mktemp('google'),io.BytesIO()
    lines = [f'kind text: {t} {l} Translate English to German: naïve' for t,l in zip(toy.text, toy.label)]
    kw = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, num_threads=1, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, vocab_size=150, **kw)
    (d/'spiece.model').write_bytes(out.getvalue())
    n = len(SentencePieceTokenizer(out.getvalue()))
    seed_everything(3)
    save_hf_t5(d/'t5', T5(T5Config(vocab_sz=-(-n//128)*128, d_model=32, d_ff=64, n_layers=2, n_heads=2, d_kv=16, p=0.)), d)
    return d/'t5'

TEXTS = ['the red cat is here','Translate English to German: That is good.','a<extra_id_3>b <extra_id_99> c','  two  spaces\tand\nlines ','½ of №5, “quoted” x²',
    '日本 and naïve','x\u00a0y','<extra_id_0>']

class TestGoogleFolders:
    def test_ids_are_those_of_transformers(self, google):
        ours,theirs = load_tokenizer(google),T5Tokenizer.from_pretrained(google)
        assert (ours.pad_id,ours.eos_id,ours.unk_id,len(ours))==(0,1,2,len(theirs))
        assert [ours.sentinels[f'<extra_id_{k}>'] for k in range(100)]==list(range(len(ours)-1, len(ours)-101, -1))==theirs.convert_tokens_to_ids([f'<extra_id_{k}>' for k in range(100)])
        for t in TEXTS: assert [*ours.encode(t),1]==theirs(t).input_ids, t
        assert ours.decode(ours.encode('the red <extra_id_0> is here'))=='the red <extra_id_0> is here'

    def test_the_json_of_transformers_will_do(self, google, tmp_path):
        T5Tokenizer.from_pretrained(google).save_pretrained(tmp_path)
        assert not (tmp_path/'spiece.model').exists()
        a,b = load_tokenizer(google),load_tokenizer(tmp_path)
        assert a.vocab==b.vocab and all(a.encode(t)==b.encode(t) for t in TEXTS)

    def test_writes_what_transformers_writes(self, google):
        theirs,tok = T5ForConditionalGeneration.from_pretrained(google).eval(),T5Tokenizer.from_pretrained(google)
        w = TextWriter.load(google, max_len=8, say=None)
        for t in TEXTS[:4]:
            x = torch.tensor([tok(t).input_ids])
            ids = theirs.generate(x, max_new_tokens=8, do_sample=False)[0]
            assert w.write([t]).texts==[ids_text(ids, w.tok, w.sp)]

    def test_learns_and_is_kept(self, google, toy, tmp_path):
        learn = text2text_learner(loaders(toy, load_tokenizer(google)), google)
        before = weights(learn)
        quiet(learn, 'fit_sched', 1, 'constant', lr_max=.02)
        assert 'embed.weight' not in same(before, weights(learn))
        learn.save(tmp_path/'m')
        learn.save_hf(tmp_path/'hf')
        texts = toy.text.tolist()[:3]
        want = learn.predict(texts, max_len=6)
        assert TextWriter.load(tmp_path/'m', say=None).predict(texts, max_len=6)==want
        assert TextWriter.load(tmp_path/'hf', say=None).predict(learn.writer().inputs(texts), max_len=6)==want
        assert (tmp_path/'hf'/'spiece.model').read_bytes()==(google/'spiece.model').read_bytes()

    def test_what_does_not_belong_together_is_refused(self, google, toy, tok, tmp_path):
        with pytest.raises(ArtefactError, match='a tokenizer of .* does not belong to'): text2text_learner(loaders(toy, tok), google)
        few = save_hf_t5(tmp_path/'few', T5(T5Config(vocab_sz=600, d_model=16, d_ff=16, n_layers=1, n_heads=1, d_kv=16, pad_id=1, eos_id=3)), google)
        with pytest.raises(ArtefactError, match='padding and end are 1 and 3'): TextWriter.load(few)
        shutil.copytree(google, tmp_path/'bad')
        (tmp_path/'bad'/'spiece.model').write_bytes(b'no pieces')
        with pytest.raises(ValueError, match='no SentencePiece model'): TextWriter.load(tmp_path/'bad')
        (tmp_path/'bad'/'spiece.model').unlink()
        with pytest.raises(FileNotFoundError, match='no tokenizer.json and no spiece.model'): TextWriter.load(tmp_path/'bad')


class TestPackedWriting:
    def test_a_writer_follows_its_model(self, toy, tok):
        learn = learner(loaders(toy, tok))
        w = learn.writer(max_len=6, say=None)
        first = w.write(toy.text[:4].tolist()).logp
        quiet(learn, 'fit_sched', 1, 'constant', lr_max=.02)
        after = w.write(toy.text[:4].tolist()).logp
        assert not np.allclose(first, after) and np.allclose(after, learn.writer(max_len=6, say=None).write(toy.text[:4].tolist()).logp)

    @pytest.mark.parametrize('dtype', ['fp16','bf16'])
    def test_answers_in_16_bits(self, trained, toy, dtype):
        if dtype=='fp16' and 'fbgemm' not in torch.backends.quantized.supported_engines: pytest.skip('weights in fp16 are for x86 CPUs')
        learn,texts = trained[0],toy.text.tolist()[::3]
        want = learn.predict(texts)
        assert np.mean([a==b for a,b in zip(learn.predict(texts, dtype=dtype), want)])>.9
        assert learn.writer(dtype=dtype).predict(texts, constrained=True)==learn.predict(texts, constrained=True)
