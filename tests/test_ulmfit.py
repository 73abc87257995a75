"The recipe end to end on a toy corpus: every row of the ablations runs, a budget is kept and said, both directions answer together, a new process reads what was saved"
import json,math,os,signal,subprocess,sys,time
from types import SimpleNamespace
import numpy as np,pandas as pd,pytest,torch
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock,DataBlock,MultiCategoryBlock,RegressionBlock
from fastai.data.transforms import ColReader,RandomSplitter
from ulmfit_t5.all import *
from ulmfit_t5.train.commands import Ticket
from ulmfit_t5.train.steer import Steering

@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    "Three kinds of sentence, a vocabulary, and a forward and a backward language model in folders"
    d,rng = tmp_path_factory.mktemp('toy'),np.random.default_rng(0)
    nouns = dict(animal=['cat','dog','horse'], place=['town','river','hill'], thing=['cup','lamp','chair'])
    rows = [(f'the {rng.choice(["old","new","big"])} {rng.choice(ns)} is here', k) for _ in range(40) for k,ns in nouns.items()]
    df = pd.DataFrame(rows, columns=['text','label'])
    tok,tiny = train_subword(df.text, vocab_sz=290),dict(COMPACT_LM, emb_sz=16, n_hid=24)
    for name,back in (('fwd',False),('bwd',True)):
        seed_everything(1)
        lm = language_model_learner(loaders(df, tok, d, is_lm=True, bs=8, seq_len=12, backwards=back), None, tiny, drop_mult=0.)
        with lm.no_bar(), lm.no_logging(): lm.fit(6, 1e-2)
        lm.save(d/name)
    return df,tok,d

def loaders(df, tok, d, **kw): return TextDataLoaders.from_df(df, tok=tok, cache=d/'cache', progress=False, **dict(dict(bs=16), **kw))

def recipe(toy, name='fwd', **kw):
    df,tok,d = toy
    kw = dict(dict(lm_plan=lm_schedule(5, 2), plan=UnfreezeSchedule.gradual(5, 1, 12, lr=2e-2), drop=0., lm_drop=0., verbose=False), **kw)
    return ULMFiT(loaders(df, tok, d, backwards=name=='bwd'), pretrained=kw.pop('pretrained', d/name), **kw)

def test_three_stages_learn_and_are_saved(toy, tmp_path):
    u = recipe(toy, out=tmp_path/'out').fit()
    assert u.evaluate(toy[0])['error'] < .1
    assert (tmp_path/'out'/'lm'/'manifest.json').exists()
    u.save(tmp_path/'clas')
    code = "import sys,json; from ulmfit_t5.inference import TextPredictor; print(json.dumps(TextPredictor.load(sys.argv[1]).probs(sys.argv[2:]).tolist()))"
    texts = toy[0].text[:5].tolist()
    got = subprocess.run([sys.executable,'-c',code,str(tmp_path/'clas'),*texts], check=True, capture_output=True, text=True).stdout
    np.testing.assert_allclose(json.loads(got.splitlines()[-1]), u.learn.predictor().probs(texts), atol=1e-6)

def test_the_same_seed_gives_the_same_bits(toy):
    a,b = (recipe(toy).fit().learn.model.state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)

@pytest.fixture(scope='module')
def directions(toy): return recipe(toy).fit(),recipe(toy, 'bwd').fit()

def test_two_directions_answer_together(toy, directions):
    fwd,bwd = directions
    both,texts = bidirectional(fwd, bwd),toy[0].text[:20].tolist()
    want = (fwd.learn.predictor().probs(texts)+bwd.learn.predictor().probs(texts))/2
    np.testing.assert_allclose(both.probs(texts), want, atol=1e-5)
    r = both.evaluate(toy[0].text, toy[0].label)
    assert r['error']==(both.probs(toy[0].text).argmax(1)!=toy[0].label.map(both.labels.index)).mean()<=.1 and r['low']<=r['error']<=r['high'] and r['n']==120
    with pytest.raises(ValueError, match='backwards=True'): bidirectional(bwd, fwd)

_answer = """import sys,json
from ulmfit_t5.inference import TextPredictor
p = TextPredictor.load(sys.argv[1])
print(json.dumps([p.probs(sys.argv[2:]).tolist(), p.evaluate(sys.argv[2:], ['animal']*len(sys.argv[2:])), p.labels, p.task, p.backwards]))"""

def test_two_directions_are_saved_and_read_in_a_fresh_process(toy, directions, tmp_path):
    both,texts = bidirectional(*directions),['the old cat is here','here is the new town','']
    assert both.save(tmp_path/'both', dtype='fp32', card='# mine')==tmp_path/'both'
    assert both.save(tmp_path/'both')==tmp_path/'both' and (tmp_path/'both'/'backward'/'manifest.json').exists() # replaced as a whole
    out = subprocess.run([sys.executable,'-c',_answer,str(tmp_path/'both'),*texts], check=True, capture_output=True, text=True).stdout
    probs,result,*rest = json.loads(out.splitlines()[-1])
    np.testing.assert_allclose(probs, both.probs(texts), atol=1e-6)
    assert result==both.evaluate(texts, ['animal']*3) and rest==[['animal','place','thing'],'single',False]
    for name,u in zip(('forward','backward'), directions):
        np.testing.assert_allclose(TextPredictor.load(tmp_path/'both'/name).probs(texts), u.learn.predictor().probs(texts), atol=1e-6)

@pytest.mark.parametrize('harm,says', [(lambda d: (d/'backward'/'model.safetensors').unlink(), 'lacks backward/model.safetensors'),
    (lambda d: os.truncate(d/'forward'/'model.safetensors', 99), 'forward/model.safetensors is truncated'), (lambda d: (d/'manifest.json').unlink(), 'no manifest.json'),
    (lambda d: (d/'forward'/'config.json').write_text((d/'backward'/'config.json').read_text()), 'save or download it again')])
def test_two_directions_of_which_one_is_damaged(directions, tmp_path, harm, says):
    bidirectional(*directions).save(tmp_path/'both')
    harm(tmp_path/'both')
    with pytest.raises(ArtefactError, match=says): TextPredictor.load(tmp_path/'both')

def test_a_failed_save_of_two_directions_leaves_the_old_one(directions, tmp_path, monkeypatch):
    both,n = bidirectional(*directions),[]
    both.save(tmp_path/'both')
    before = {o:o.read_bytes() for o in (tmp_path/'both').rglob('*') if o.is_file()}
    def full(*args, **kwargs):
        n.append(args)
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('ulmfit_t5.models.checkpoint.save_file', lambda *a: full() if len(n) else n.append(a)) # the second of the two
    with pytest.raises(OSError, match='what was there before is untouched'): both.save(tmp_path/'both')
    assert {o:o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()}==before and len(n)>=1

def test_two_directions_that_do_not_go_together(toy, directions):
    df,tok,d = toy
    dls = loaders(df, train_subword(df.text.str.replace('cat', 'fox'), vocab_sz=288), d, backwards=True)
    other = ULMFiT(dls, pretrained=d/'bwd', lm_plan=False, plan=UnfreezeSchedule.full(5, 1), verbose=False)
    with pytest.raises(ValueError, match='call fit'): bidirectional(directions[0], other)
    with pytest.raises(ValueError, match='different vocabularies'): bidirectional(directions[0], other.fit())

def block_loaders(df, tok, y=CategoryBlock, **kw):
    db = DataBlock((TextBlock(tok, **kw),y), get_x=ColReader('text'), get_y=ColReader('label'), splitter=RandomSplitter(.2, seed=0))
    return db.dataloaders(df, bs=16)

def test_loaders_of_a_data_block_go_all_the_way(toy, tmp_path):
    df,tok,d = toy
    kw = dict(lm_plan=lm_schedule(5, 2), plan=UnfreezeSchedule.gradual(5, 1, 16, lr=2e-2), drop=0., lm_drop=0., verbose=False)
    u = ULMFiT(block_loaders(df, tok), pretrained=d/'fwd', **kw).fit()
    assert u.learn.labels==['animal','place','thing'] and u.learn.task=='single'
    assert u.evaluate(df)['error']<.1 and u.evaluate(df.rename(columns=dict(text='words', label='kind')), 'words', 'kind')['error']<.1
    assert u.predict('the old cat is here').label==TextPredictor.load(u.save(tmp_path/'c')).predict('the old cat is here').label

def test_what_loaders_of_a_data_block_know(toy):
    df,tok,_ = toy
    many = facts(block_loaders(df.assign(label=[['a'],['a','b'],[]]*40), tok, MultiCategoryBlock, backwards=True))
    assert (many.labels,many.task,many.n_out,many.backwards)==(['a','b'],'multi',2,True) and many.tok is tok
    number = facts(block_loaders(df.assign(label=np.arange(120.)), tok, RegressionBlock))
    assert (number.labels,number.task,number.n_out)==(['value'],'regression',1)

@pytest.mark.parametrize('row', [*ABLATIONS[7]])
def test_rows_of_table_7_run(toy, row):
    u = recipe(toy, plan=ablation(row, 7, 5, 7), lm_plan=False, **(dict(pretrained=None) if 'scratch' in row else {}))
    u.finetune_classifier()
    assert len(u.learn.recorder.values)>=1 and np.isfinite(u.learn.recorder.values[-1][0])

@pytest.mark.parametrize('row', [*ABLATIONS[6]])
def test_rows_of_table_6_run(toy, row):
    u = recipe(toy, lm_plan=ablation(row, 6, 5, 2) or False)
    u.finetune_lm()
    assert (u.lm_learn is None)==(row=='no LM fine-tuning')

def test_a_budget_is_kept_and_what_it_cut_is_said(toy, capsys, monkeypatch):
    "By a clock of our own, which only batches move"
    now = [0.]
    class Move(Callback):
        order = -20
        def after_batch(self): now[0] += .05
    monkeypatch.setattr(TimeBudget, 'clock', staticmethod(lambda: now[0]))
    monkeypatch.setattr('ulmfit_t5.ulmfit.time', SimpleNamespace(time=lambda: now[0]))
    u = recipe(toy, plan=UnfreezeSchedule.gradual(5, 2000, 2000), lm_plan=lm_schedule(5, 3000), verbose=True).fit('12s', cbs=[Move()])
    assert [c.split(':')[0] for c in u.cuts]==['language model','classifier']
    assert len(np.unique((u.learn.group_rates>0).sum(1)))==5 # every stage had its share
    out = capsys.readouterr().out
    assert 'cut:' in out and out.strip().endswith(f'{now[0]:.0f} s in all') and 10<now[0]<=12.1

def test_a_model_of_the_other_direction_is_refused(toy):
    with pytest.raises(ValueError, match='reads forward'): recipe(toy, 'bwd', pretrained=toy[2]/'fwd').fit()

def test_an_unknown_label_is_named(toy):
    u = recipe(toy, plan=UnfreezeSchedule.full(5, 1), lm_plan=False).fit()
    with pytest.raises(ValueError, match="'plant' was not in training"): u.evaluate(pd.DataFrame(dict(text=['a tree'], label=['plant'])))

def test_another_vocabulary_is_matched(toy, capsys):
    df,tok,d = toy
    other = train_subword(df.text.str.replace('cat', 'fox'), vocab_sz=288)
    text_classifier_learner(loaders(df, other, d), d/'fwd')
    assert 'keep their vectors' in capsys.readouterr().out

def test_fit_from_the_command_line_demo(tmp_path):
    "The demonstration at its smallest: all parts run, nothing is asserted of the errors"
    from ulmfit_t5.demo import demo
    rows = demo(minutes=.1, n_per_class=2, out=str(tmp_path))
    assert [w.split()[0] for w,_ in rows]==['TF-IDF','the','ULMFiT,'] and all(0<=r['error']<=1 for _,r in rows)

def test_evaluate_reads_the_columns_of_the_loaders(toy):
    df,tok,d = toy
    df = df.assign(head=df.text.str.split().str[:2].str.join(' '), tail=df.text.str.split().str[2:].str.join(' ')).drop(columns='text')
    kw = dict(text_cols=['head','tail'], label_cols='kind')
    dls = TextDataLoaders.from_df(df.rename(columns=dict(label='kind')), tok=tok, cache=d/'cache', bs=16, progress=False, **kw)
    u = ULMFiT(dls, pretrained=d/'fwd', lm_plan=False, plan=UnfreezeSchedule.full(5, 12, lr=2e-2, factor=1.), drop=0., verbose=False)
    with pytest.raises(ValueError, match='call fit'): u.evaluate(df)
    u.fit()
    with pytest.raises(ValueError, match='no rows'): u.evaluate(df[:0])
    assert u.evaluate(df.rename(columns=dict(label='kind')))['error'] < .35 # half the rows by chance, and from an empty column
    assert u.evaluate(df, label_cols='label')['error'] < .35
    with pytest.raises(TypeError, match='such as a column'): u.predict(df)

def test_what_an_earlier_run_left_is_not_taken(toy, tmp_path):
    recipe(toy, out=tmp_path).finetune_lm()
    u = recipe(toy, out=tmp_path, pretrained=None, lm_plan=None)
    u.finetune_classifier()
    assert u.learn.model.encoder.emb_sz==COMPACT_CLAS['emb_sz']

@pytest.mark.parametrize('kw,error,says', [(dict(plan='freeze'),KeyError,'freeze'), (dict(lm_plan='most'),KeyError,'most'), (dict(smothing=.1),TypeError,'smoothing'),
    (dict(plan=UnfreezeSchedule.gradual(4)),ValueError,'plan is for 4 parameter groups and the model has 5'), (dict(plan=3),TypeError,'plan is 3: give an UnfreezeSchedule'),
    (dict(lm_plan=lm_schedule(4)),ValueError,'lm_plan is for 4 parameter groups and the model has 5'), (dict(smoothing=2),ValueError,'a share from 0'),
    (dict(weight=[1,2]),ValueError,'weight has 2 values for 3 outputs: give one for each of animal, place, thing'), (dict(head=dict(pool='most')),ValueError,'most'),
    (dict(pretrained='nowhere'),FileNotFoundError,'not bundled')])
def test_mistakes_are_found_before_training(toy, kw, error, says):
    with pytest.raises(error, match=says): recipe(toy, **kw)

def test_cuts_are_those_of_the_last_run(toy):
    u = recipe(toy, plan=UnfreezeSchedule.full(5, 3000), lm_plan=lm_schedule(5, 3000))
    for _ in range(2): u.fit('1.5s')
    assert [c.split(':')[0] for c in u.cuts]==['language model','classifier']
    u.plan = UnfreezeSchedule.full(5, 1)
    u.finetune_classifier()
    assert [c.split(':')[0] for c in u.cuts]==['language model']

def test_a_language_model_shows_what_it_expects(toy, monkeypatch):
    (df,tok,d),shown = toy,[]
    monkeypatch.setattr('ulmfit_t5.learner.display_df', shown.append)
    learn = language_model_learner(loaders(df, tok, d, is_lm=True, bs=8, seq_len=12), d/'fwd', verbose=False)
    learn.show_results(max_n=2)
    assert list(shown[0])==['text','text_','pred'] and len(shown[0])==2 and shown[0].text.str.len().min()>3
    with pytest.raises(TypeError, match='perplexity'): learn.get_preds()

_resumed = """import os,signal,sys
from pathlib import Path
from fastai.callback.core import Callback
from ulmfit_t5.all import *
from ulmfit_t5.train.commands import Ticket
from ulmfit_t5.train.steer import Steering
class Die(Callback):
    order,n = 99,0 # after its checkpoint was written
    def after_batch(self):
        if not self.training: return
        Die.n += 1
        if Die.n==int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
d,out = Path(sys.argv[1]),Path(sys.argv[3])
dls = TextDataLoaders.from_df(pd.read_json(d/'toy.json'), tok=load_tokenizer(d/'fwd'), cache=d/'cache', progress=False, bs=16)
plans = dict(lm_plan=lm_schedule(5, 1), plan=UnfreezeSchedule.gradual(5, 1, 2))
u = ULMFiT(dls, lm_loaders(dls, bs=4, seq_len=12), d/'fwd', out=out, resume=1e-6, verbose=False, **plans)
u.fit(cbs=[Die()]).save(out/'clas', dtype='fp32')"""

def test_the_one_call_is_killed_in_both_stages_and_ends_with_the_same_bits(toy, tmp_path):
    "SIGKILL in the middle of stage B, of stage C, and none; the same call again each time"
    df,tok,d = toy
    df.to_json(d/'toy.json')
    def go(at, out): return subprocess.run([sys.executable,'-c',_resumed,str(d),str(at),str(tmp_path/out)], capture_output=True, text=True)
    whole = go(0, 'whole')
    assert whole.returncode==0, whole.stderr
    codes = [go(at, 'killed').returncode for at in (9,30,0)]
    assert codes==[-signal.SIGKILL,-signal.SIGKILL,0] and len([*(tmp_path/'killed'/'checkpoints').iterdir()])==2
    a,b = (load_artefact(tmp_path/o/'clas').tensors for o in ('whole','killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_a_search_for_a_rate_leaves_no_trace(toy, tmp_path, monkeypatch):
    "Bits of a training after fastai's `lr_find`, far enough that the loss is lost, are those of one without it; nothing is written"
    monkeypatch.chdir(tmp_path)
    def train(search, make):
        seed_everything(0)
        learn = make()
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
            if search: learn.lr_find(num_it=40, end_lr=1e4, stop_div=False, show_plot=False)
            learn.fit(1)
        return learn.model.state_dict()
    df,tok,d = toy
    clas = lambda: text_classifier_learner(loaders(df, tok, d), d/'fwd', verbose=False)
    lm = lambda: language_model_learner(loaders(df, tok, d, is_lm=True, bs=8, seq_len=12), d/'fwd', verbose=False)
    for make in clas,lm:
        a,b = train(False, make),train(True, make)
        assert all(torch.equal(a[k], b[k]) for k in a) and not [o for o in tmp_path.rglob('*') if o.is_file()]

def test_a_model_of_other_labels_words_or_direction_is_not_loaded(toy, tmp_path):
    df,tok,d = toy
    make = lambda df=df,tok=tok,**kw: text_classifier_learner(loaders(df, tok, d, **kw), None, dict(emb_sz=8, n_hid=8, n_layers=1, output_p=.1), verbose=False)
    learn = make()
    learn.save(tmp_path/'c')
    fox = train_subword(df.text.str.replace('cat', 'fox'), vocab_sz=290)
    for other,error,says in ((make(df.assign(label=df.label.map(dict(animal='c', place='b', thing='a')))),ArtefactError,'tells animal, place, thing apart, and the loaders have a, b, c'),
        (make(tok=fox),ArtefactError,'has a vocabulary of 290 entries, the loaders another of 290'), (make(backwards=True),ValueError,'reads forward but the loaders give text backward')):
        before = {k:v.clone() for k,v in other.model.state_dict().items()}
        with pytest.raises(error, match=says): other.load(tmp_path/'c')
        assert all(torch.equal(v, before[k]) for k,v in other.model.state_dict().items())
    assert make().load(tmp_path/'c').predict('the old cat').probs==learn.predict('the old cat').probs

def test_loaders_of_the_wrong_kind_are_refused(toy):
    df,tok,d = toy
    tiny = dict(config=dict(emb_sz=8, n_hid=8, n_layers=1, output_p=.1), pretrained=None, verbose=False)
    with pytest.raises(ValueError, match='these loaders have no labels'): text_classifier_learner(loaders(df, tok, d, is_lm=True), **tiny)
    with pytest.raises(TypeError, match='make them with is_lm=True'): language_model_learner(loaders(df, tok, d), **tiny)
    with pytest.raises(TypeError, match='do not say how their text was tokenised'): text_classifier_learner(df, **tiny)
    alone = text_classifier_learner(TextDataLoaders.from_sets(loaders(df, tok, d).train.ds, tok=tok, bs=8), **tiny)
    with alone.no_bar(), pytest.raises(ValueError, match='nothing to validate with'): alone.fit(1)
    with pytest.raises(ValueError, match='a budget of 0 s trains nothing'): recipe(toy).fit('0s')

def test_the_best_weights_are_kept_by_the_callback_of_fastai(toy, tmp_path, monkeypatch):
    from fastai.callback.tracker import SaveModelCallback
    monkeypatch.chdir(tmp_path)
    df,tok,d = toy
    learn,seen = text_classifier_learner(loaders(df, tok, d), None, dict(emb_sz=8, n_hid=8, n_layers=1, output_p=.1), verbose=False),[]
    class Look(Callback):
        order = 99
        def after_epoch(self): seen.append((self.recorder.values[-1][1],self.model.state_dict()['head.6.bias'].clone()))
    with learn.no_bar(), learn.no_logging(): learn.fit(4, 5e-2, cbs=[SaveModelCallback(),Look()])
    assert learn.model.state_dict()['head.6.bias'].equal(min(seen, key=lambda o: o[0])[1])
    with learn.no_bar(), pytest.raises(TypeError, match='leave with_opt out'): learn.fit(1, cbs=SaveModelCallback(with_opt=True))

def test_fields_of_a_text_are_asked_about_as_they_were_trained(toy, tmp_path):
    df,tok,d = toy
    cols = df.assign(head=df.text.str[:8], tail=df.text.str[8:])
    dls = loaders(cols, tok, d, text_cols=['head','tail'])
    learn = text_classifier_learner(dls, None, dict(emb_sz=8, n_hid=8, n_layers=1, output_p=.1), verbose=False, reg=dict(bf16=False))
    with learn.no_bar(): want = learn.get_preds(dl=dls.test_dl(cols[:3]))[0].numpy()
    asked = list(cols[:3][['head','tail']].itertuples(index=False, name=None))
    np.testing.assert_allclose([[p.probs[l] for l in learn.labels] for p in learn.predict(asked)], want, atol=1e-5)

def test_pretrain_whole_and_what_it_refuses(toy, tmp_path):
    "The command as a call: a vocabulary, a model with its card, the same folder again, and other text of the same size"
    (tmp_path/'texts').mkdir()
    train,valid = tmp_path/'texts'/'train.txt',tmp_path/'valid.txt'
    text = '\n\n'.join(toy[0].text)
    for f in (train,valid): f.write_text(text)
    kw = dict(tokenizer=str(toy[2]/'fwd'), budget='3s', bs=4, seq_len=10, threads=1, name='toy', corpus='toy sentences')
    with pytest.raises(ValueError, match='among the texts'): pretrain(str(tmp_path/'texts'), str(train), str(tmp_path/'run'), **kw)
    run = pretrain(str(tmp_path/'texts'), str(valid), str(tmp_path/'run'), **kw)
    assert run.step>0 and run.done
    card = (tmp_path/'run'/'model'/'README.md').read_text()
    assert all(o in card for o in ('| files | train.txt |',"--corpus 'toy sentences'",'--name toy'))
    step = run.step
    assert pretrain(str(tmp_path/'texts'), str(valid), str(tmp_path/'run'), **kw).step==step
    train.write_text(text[::-1])
    other = pretrain(str(tmp_path/'texts'), str(valid), str(tmp_path/'other'), **kw)
    assert len(other.data.ids)!=len(run.data.ids) or (other.data.ids!=run.data.ids).any()

@pytest.mark.skipif(torch.cuda.is_available(), reason='the same bits are promised on a CPU')
def test_pretraining_killed_in_the_middle_ends_with_the_same_bits(toy, tmp_path):
    "The command in a process of its own, SIGKILL after its first checkpoint, the same command again: weights, moments and state as if nothing had happened"
    rng,text = np.random.default_rng(0),tmp_path/'train.txt'
    text.write_text('\n\n'.join(toy[0].text.sample(600, replace=True, random_state=0)))
    (tmp_path/'valid.txt').write_text('\n\n'.join(toy[0].text[:9]))
    kw = dict(tokenizer=toy[2]/'fwd', budget='99h', bs=8, seq_len=12, threads=1, drop=.5, save_every=.05)
    words = [str(o) for k,v in kw.items() for o in (f"--{k.replace('_', '-')}",v)]
    cmd = [sys.executable,'-m','ulmfit_t5.cli','pretrain',text,tmp_path/'valid.txt',tmp_path/'run',*words]
    with subprocess.Popen([str(o) for o in cmd], stdout=subprocess.DEVNULL) as p:
        end = time.time()+120
        while not (tmp_path/'run'/'run'/'state.json').exists() and p.poll() is None and time.time()<end: time.sleep(.01)
        time.sleep(rng.random()/20) # wherever it is by then, in a step or while it saves
        p.send_signal(signal.SIGKILL)
    assert p.returncode==-signal.SIGKILL and not (tmp_path/'run'/'model').exists()
    at = load_state(tmp_path/'run'/'run')['step']
    call = lambda name: pretrain(str(text), str(tmp_path/'valid.txt'), str(tmp_path/name), **kw|dict(tokenizer=str(kw['tokenizer']), save_every=99.))
    again,whole = call('run'),call('whole')
    assert 0<at<again.step==whole.step
    for part in (lambda o: o.model.state_dict(), lambda o: o.opt.state_dict()['state'], lambda o: o.extra_state()): assert same(part(again), part(whole))

def same(a, b):
    "Are two nests of tensors and numbers equal to the bit?"
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return list(a)==list(b) and all(same(a[k], b[k]) for k in a)
    return len(a)==len(b) and all(map(same, a, b)) if isinstance(a, (list,tuple)) else a==b

def test_pretraining_refuses_a_gradient_that_is_no_number(toy, tmp_path):
    "The loss is finite, the derivative of a root at 0 is not: no step is taken"
    class Root(LMRun):
        def losses(self, b):
            loss,total = super().losses(b)
            return loss,total + (0*self.model.encoder.embed.weight.sum()).abs().sqrt()
    corpus = tokenize_corpus(toy[0].text, toy[1], cache=tmp_path)
    run = Root(tmp_path/'run', corpus, corpus, dict(COMPACT_LM, emb_sz=8, n_hid=8, n_layers=1), len(toy[1]), bs=4, seq_len=8)
    before = {k:v.clone() for k,v in run.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match='norm of the gradient is nan at step 0'): run.train_step()
    assert run.step==0 and same(dict(run.model.state_dict()), before) and not any(p.grad is not None and p.grad.any() for p in run.model.parameters())

def features(enc, ids):
    "Vectors of texts from an encoder as it is"
    doc = DocumentEncoder(enc).eval()
    out = np.zeros((len(ids),doc.n_ftrs), dtype=np.float32)
    with torch.inference_mode():
        for b in length_batches([len(o) for o in ids]): out[b] = doc(pad_rows([ids[i] for i in b])).numpy()
    return out

@pytest.fixture(scope='module')
def dbpedia():
    "Ten labelled texts of each class of the bundled sample and twenty to test on, as ids of the bundled vocabulary, cut at 60"
    d,tok = load_dataset('dbpedia'),bundled_tokenizer()
    parts = few_shot(d.train, n_per_class=10),few_shot(d.test, n_per_class=20)
    return [(few.label.to_numpy(),[o[:60] for o in tok.encode_batch(few.text)]) for few in parts]

def test_the_bundled_model_knows_more_than_one_that_never_read(dbpedia):
    "Logistic regression on frozen states: 34 % errors against 59 %"
    from sklearn.linear_model import LogisticRegression
    (y,train),(y2,test) = dbpedia
    def error(enc):
        x,x2 = features(enc, train),features(enc, test)
        m,s = x.mean(0),x.std(0)+1e-6
        return (LogisticRegression(C=.01, max_iter=300).fit((x-m)/s, y).predict((x2-m)/s)!=y2).mean()
    lm = load_language_model('awd-lstm-fwd')
    seed_everything(0)
    ours,scratch = error(lm.lm.encoder),error(AWDLSTM(**lm.config['model']))
    assert ours<.75*scratch, (ours,scratch)

@pytest.mark.parametrize('name,step', [('awd-lstm-fwd',1),('awd-lstm-bwd',-1)])
def test_a_bundled_model_expects_its_text_in_its_direction(dbpedia, name, step):
    s = load_language_model(name)
    lm,loss = s.lm.eval(),LMLoss(s.lm)
    def nats(step):
        ids = pad_rows([o[:24][::step] for o in dbpedia[1][1] if len(o)>=24][:64])
        lm.reset()
        with torch.inference_mode(): return loss(lm(ids[:,:-1]), ids[:,1:]).item()
    assert nats(step)<6<7<nats(-step) and math.log(len(s.tok))>9, (nats(step),nats(-step)) # guessing costs 9.2

@pytest.mark.parametrize('at,cut', [(2,'language model: stopped by a command after 2 of 6'),(9,'classifier: stopped by a command after 3 of 6')])
def test_a_stop_ends_both_stages_and_says_so(at, cut):
    df = few_shot(load_dataset('dbpedia')['train'], n_per_class=2)
    dls = TextDataLoaders.from_df(df, valid_pct=.2, bs=8, progress=False)
    steer = Steering()
    steer.queue.append(Ticket('stop', {}, at))
    u = ULMFiT(dls, verbose=False, plan=UnfreezeSchedule.full(5, 2), lm_plan=UnfreezeSchedule.full(5, 3)).fit(cbs=[steer])
    assert steer.steps_done==at and u.cuts[0].startswith(cut) and (u.learn is None)==(at==2)
