"The recipe end to end on a toy corpus: every row of the ablations runs, a budget is kept and said, both directions answer together, a new process reads what was saved"
import json,subprocess,sys
import numpy as np,pandas as pd,pytest,torch
from ulmfit_t5.all import *

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

def test_two_directions_answer_together(toy):
    fwd,bwd = recipe(toy).fit(),recipe(toy, 'bwd').fit()
    both,texts = bidirectional(fwd, bwd),toy[0].text[:20].tolist()
    want = (fwd.learn.predictor().probs(texts)+bwd.learn.predictor().probs(texts))/2
    np.testing.assert_allclose(both.probs(texts), want, atol=1e-5)
    with pytest.raises(ValueError, match='backwards=True'): bidirectional(bwd, fwd)

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

def test_a_budget_is_kept_and_what_it_cut_is_said(toy, capsys):
    u = recipe(toy, plan=UnfreezeSchedule.gradual(5, 50, 2000), lm_plan=lm_schedule(5, 3000), verbose=True).fit('12s')
    assert [c.split(':')[0] for c in u.cuts]==['language model','classifier']
    assert len(np.unique((u.learn.group_rates>0).sum(1)))==5 # every stage had its share
    out = capsys.readouterr().out
    took = float(out.strip().splitlines()[-1].split(' s in all')[0])
    assert 'cut:' in out and took<40

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
    assert u.evaluate(df, label_cols='label')['error'] < .1
    with pytest.raises(TypeError, match='such as a column'): u.predict(df)

def test_what_an_earlier_run_left_is_not_taken(toy, tmp_path):
    recipe(toy, out=tmp_path).finetune_lm()
    u = recipe(toy, out=tmp_path, pretrained=None, lm_plan=None)
    u.finetune_classifier()
    assert u.learn.model.encoder.emb_sz==COMPACT_CLAS['emb_sz']

@pytest.mark.parametrize('kw,error,says', [(dict(plan='freeze'),KeyError,'freeze'), (dict(lm_plan='most'),KeyError,'most'), (dict(smothing=.1),TypeError,'smoothing')])
def test_mistakes_are_found_before_training(toy, kw, error, says):
    with pytest.raises(error, match=says): recipe(toy, **kw)

def test_a_language_model_shows_what_it_expects(toy, monkeypatch):
    (df,tok,d),shown = toy,[]
    monkeypatch.setattr('ulmfit_t5.learner.display_df', shown.append)
    learn = language_model_learner(loaders(df, tok, d, is_lm=True, bs=8, seq_len=12), d/'fwd', verbose=False)
    learn.show_results(max_n=2)
    assert list(shown[0])==['text','text_','pred'] and len(shown[0])==2 and shown[0].text.str.len().min()>3
    with pytest.raises(TypeError, match='perplexity'): learn.get_preds()

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
