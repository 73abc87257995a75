"Bad rows, columns, files and characters: each is handled and reported, or refused with a sentence that names it and the way out"
import bz2,gzip,json,lzma
import numpy as np,pandas as pd,pytest,torch
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock,DataBlock
from fastai.data.transforms import ColReader,IndexSplitter
from hypothesis import given,settings,strategies as st
from ulmfit_t5.data.blocks import clean_chars,random_valid,read_table
from ulmfit_t5.data.datasets import few_shot,load_dataset
from ulmfit_t5.data.loaders import BucketLoader,LMLoader,MemoryCorpus,TextBlock,TextDataLoaders
from ulmfit_t5.data.tokenizer import train_subword
from ulmfit_t5.models.awd_lstm import language_model
from ulmfit_t5.models.checkpoint import ArtefactError
from ulmfit_t5.train.callbacks import NonFiniteError
from ulmfit_t5.artefacts import load_classifier,load_language_model,save_classifier,save_encoder,save_language_model
from ulmfit_t5.inference import TextPredictor,generate_text
from ulmfit_t5.learner import text_classifier_learner

@pytest.fixture(scope='module')
def tok(): return train_subword(load_dataset('dbpedia', 'test').text[:200], vocab_sz=600, n_threads=1)

def frame(**cols): return pd.DataFrame({k:pd.Series(v, dtype=object) for k,v in cols.items()})

def refused(*parts, **kw):
    with pytest.raises(ValueError) as e: read_table(**kw)
    for o in parts: assert o in str(e.value), str(e.value)

@pytest.mark.parametrize('v', [None,float('nan'),pd.NA,pd.NaT])
def test_missing_text(v):
    df = frame(text=['a',v,'b'], label=['x','y','x'])
    refused('row 1', "column 'text'", 'is missing', "on_bad='drop'", source=df)
    got,rep = read_table(df, on_bad='drop')
    assert got.text.tolist()==['a','b'] and rep.dropped[0][0]=='row 1' and 'row 1' in str(rep)

@pytest.mark.parametrize('v', [None,float('nan'),''])
def test_missing_label(v): refused('row 1', "column 'label'", 'is missing', source=frame(text=['a','b'], label=['x',v]))

@pytest.mark.parametrize('v', [['a'],b'bytes',{'a':1}])
def test_wrong_kind_of_text(v): refused('row 0', "column 'text'", type(v).__name__, 'not text', source=frame(text=[v], label=['x']))

def test_several_bad_rows_are_counted(): refused('row 0', 'and 2 more rows are bad', source=frame(text=[None]*3, label=['x']*3))

def test_index_of_a_filtered_frame_names_the_row(): refused('row 7', source=frame(text=['a']*7+[None], label=['x']*8)[5:])

def test_empty_and_blank_texts_are_kept_and_reported(tok):
    df = frame(text=['',' \t\n','a','b']*5, label=['x','y']*10)
    got,rep = read_table(df)
    assert len(got)==20 and len(rep.empty)==10 and 'row 0' in str(rep)
    dls = TextDataLoaders.from_df(df, tok=tok, bs=4, device='cpu', progress=False)
    assert all(x[0,0]==tok.bos_id for x,_ in dls.train)

def test_rows_with_nothing_in_several_columns_are_reported():
    df = frame(title=['',' \0',' ','t'], text=['','\n','a',''], label=['x','y','x','y'])
    got,rep = read_table(df, text_cols=['title','text'])
    assert rep.empty==['row 0','row 1'] and rep.cleaned==1 and got.columns.tolist()==['at','text','label']

def test_dropped_rows_are_listed_by_their_number(tmp_path):
    (tmp_path/'a.csv').write_text('text,label\na,\nonly one\nb,x\nc,\n'+'d,x\n'*5+'too,many,fields\n')
    _,rep = read_table(tmp_path/'a.csv', on_bad='drop')
    assert [o[0] for o in rep.dropped]==[f'line {n} of a.csv' for n in (2,3,5,11)]
    refused('line 2 of a.csv', 'is missing', 'and 3 more rows are bad', source=tmp_path/'a.csv')
    _,rep = read_table(dict(train=frame(text=['a','b'], label=['x','']), valid=frame(text=['c',None,'d'], label=['new','x','x'])), on_bad='drop')
    assert [o[0] for o in rep.dropped]==['row 1 of train','row 0 of valid','row 1 of valid']

def test_one_is_not_said_as_many():
    _,rep = read_table(dict(train=frame(text=['a\0'], label=['x']), test=frame(text=['b'], label=['x'])))
    assert '1 text held NUL' in str(rep) and 'test (1 row)' in str(rep)
    refused('row 0', 'and 1 more row is bad', source=frame(text=[None]*2, label=['x']*2))

def test_numbers_become_text(): assert read_table(frame(text=[1,2.5,np.int64(3)]), label_cols=None)[0].text.tolist()==['1','2.5','3']

def test_a_million_characters_without_a_space(tok):
    df = frame(text=['x'*1_000_000,*['the cat']*9], label=['a','b']*5)
    dls = TextDataLoaders.from_df(df, tok=tok, bs=4, max_tokens=4000, valid_pct=.2, seed=1, device='cpu', progress=False)
    assert dls.report.longest==(1_000_000,'row 0') and sum(len(x) for x,_ in dls.train)==8
    short = TextDataLoaders.from_df(df, tok=tok, bs=4, max_len=50, device='cpu', progress=False)
    assert max(x.shape[1] for x,_ in short.train)<=50

def test_nul_and_lone_surrogates():
    got,rep = read_table(frame(text=['a\0b','c\ud800','\ud83d\ude00','ok']), label_cols=None)
    assert got.text.tolist()==['ab','c','😀','ok'] and rep.cleaned==3 and '3 texts held' in str(rep)

def test_scripts_pass_unchanged():
    texts = ['😀👩‍👩‍👧','مرحبا بالعالم','שלום','Żółw мир 世界 مرحبا','a\u202eb']
    assert read_table(texts, label_cols=None)[0].text.tolist()==texts

def test_class_with_one_example_is_reported_and_stays_in_training():
    df,rep = read_table(frame(text=list('abcdefgh'), label=['x']*7+['rare']))
    assert rep.single==['rare'] and 'rare' in str(rep)
    for s in range(10): assert 'rare' in set(df.label[~random_valid(df, .5, s)])

def test_label_unseen_in_training():
    parts = dict(train=frame(text=['a','b'], label=['x','y']), valid=frame(text=['c','d'], label=['x','new']))
    refused('row 1 of valid', "column 'label' is 'new'", 'no training row has (x, y)', "on_bad='drop'", source=parts)
    df,rep = read_table(parts, on_bad='drop')
    assert len(df)==3 and rep.n_valid==1 and rep.dropped[0][0]=='row 1 of valid'

def test_label_unseen_in_new_texts(tok):
    dls = TextDataLoaders.from_list(list('abcdefgh'), ['x','y']*4, tok=tok, device='cpu', progress=False)
    with pytest.raises(ValueError, match="row 1: column 'label' is 'z', a label that is not among those known"):
        dls.test_dl(frame(text=['a','b'], label=['x','z']), with_labels=True)

def test_empty_splits(tok):
    refused('has no training rows', source=frame(text=[], label=[]))
    refused('has no validation rows', source=dict(train=frame(text=['a'], label=['x']), valid=frame(text=[], label=[])))
    refused('has no training rows', '1 was dropped', source=frame(text=[None], label=['x']), on_bad='drop')
    refused('has no training rows: give a source that has some', source=frame(text=['a','b'], label=['x','y'], is_valid=[True,True]), valid='is_valid')
    with pytest.raises(ValueError, match='valid_pct=0.2 of 1 row leaves 0'): TextDataLoaders.from_list(['a'], ['x'], tok=tok, progress=False)

def test_too_short_for_a_language_model(tok):
    make = lambda parts: TextDataLoaders.from_source(parts, is_lm=True, tok=tok, device='cpu', progress=False)
    long,short = frame(text=['the cat sat on the mat']*9),frame(text=[''])
    with pytest.raises(ValueError, match='1 text to validate with has 1 token in all, and a language model needs at least 2: give longer'): make(dict(train=long, valid=short))
    with pytest.raises(ValueError, match='1 text to train with has 1 token in all'): make(dict(train=short, valid=long))
    dls = make(dict(train=long, valid=long))
    with pytest.raises(ValueError, match='1 text to read with has 1 token'): dls.test_dl('')
    with pytest.raises(ValueError, match='there are no texts to read'): dls.test_dl([])
    assert len(dls.test_dl(['one','two']))>0

@pytest.mark.parametrize('is_lm', [True,False])
def test_parts_of_a_data_block_that_are_empty(tok, is_lm):
    df = frame(text=['the cat sat on the mat']*6, label=['x','y']*3)
    def make(valid):
        blocks = TextBlock(tok, is_lm=is_lm, seq_len=5) if is_lm else (TextBlock(tok),CategoryBlock)
        db = DataBlock(blocks, get_x=ColReader('text'), get_y=None if is_lm else ColReader('label'), splitter=IndexSplitter(valid))
        return db.dataloaders(df, bs=4, device='cpu')
    with pytest.raises(ValueError, match='of 6 texts the splitter leaves none to train with'): make(range(6))
    if is_lm:
        with pytest.raises(ValueError, match='0 texts to validate with have 0 tokens in all'): make([])
    else: assert len(make([]).valid)==0
    assert len(make([0,1]).valid)>0

def test_missing_column_offers_the_nearest():
    df = frame(Text=['a'], lable=['x'], other=[1])
    refused("no column 'text'", "did you mean 'Text'", 'text_cols=', source=df)
    refused("no column 'label'", "did you mean 'lable'", 'label_cols=', source=df, text_cols='Text')
    refused("no column 'zzzz'", "name one of 'Text', 'lable', 'other'", source=df, text_cols='zzzz')
    assert read_table(df, text_cols=0, label_cols=1)[0].label.tolist()==['x']

def test_a_file_with_nothing_in_it(tmp_path):
    for name in ('a.csv','a.jsonl'):
        (tmp_path/name).touch()
        refused(f'{name} is empty', 'give one with rows', source=tmp_path/name)
    refused('the table is empty', source=pd.DataFrame())
    refused("valid='dev' is no split, no column (text, label) and no file", source=frame(text=['a'], label=['x']), valid='dev')

def test_broken_csv_rows(tmp_path):
    p = tmp_path/'a.csv'
    p.write_text('text,label\ngood,x\n"two\nlines",y\nonly one\na,b,c\n\nfine,x\n"never closed,y\nz,x\n')
    refused('line 5 of a.csv', 'it has 1 field where the header has 2', 'and 2 more rows are bad', "on_bad='drop'", source=p)
    df,rep = read_table(p, on_bad='drop')
    assert df.text.tolist()==['good','two\nlines','fine'] and [o[0] for o in rep.dropped]==[f'line {n} of a.csv' for n in (5,6,9)]
    assert df['at'].tolist()==['line 2 of a.csv','line 3 of a.csv','line 8 of a.csv']

@pytest.mark.parametrize('sep', [';','\t','|'])
def test_csv_with_another_separator(tmp_path, tok, sep):
    p = tmp_path/'a.csv'
    p.write_text(f'text{sep}label\n'+''.join(f'well, text {i}{sep}{"xy"[i%2]}\n' for i in range(10)))
    refused("a.csv has no column 'text'", f'give sep={sep!r}', source=p)
    (tmp_path/'b.csv').write_text(f'text{sep}x\n'*3)
    refused('line 1 of b.csv', f'give sep={sep!r}', source=tmp_path/'b.csv', columns=['text','label'])
    df,_ = read_table(p, sep=sep)
    assert len(df)==10 and df.text[3]=='well, text 3' and df.label[3]=='y'
    dls = TextDataLoaders.from_csv(p, sep=sep, tok=tok, bs=2, device='cpu', progress=False)
    assert dls.test_dl(p).n==10
    refused("sep=', ' is no separator", source=p, sep=', ')

def test_a_single_column_is_no_fault(tmp_path):
    (tmp_path/'a.csv').write_text('text\none; two\nthree; four\n')
    assert read_table(tmp_path/'a.csv', label_cols=None)[0].text.tolist()==['one; two','three; four']

def test_words_that_pandas_takes_for_missing(tmp_path):
    (tmp_path/'a.csv').write_text('text,label\nNA,null\nNone,1\n007,2020-01-01\n')
    df,_ = read_table(tmp_path/'a.csv')
    assert df[['text','label']].values.tolist()==[['NA','null'],['None','1'],['007','2020-01-01']]

def test_csv_with_nul_bom_and_a_huge_field(tmp_path):
    (tmp_path/'a.csv').write_bytes('\ufefftext,label\na\0b,x\n'.encode() + b'"' + b'y'*300_000 + b'",y\n')
    df,rep = read_table(tmp_path/'a.csv')
    assert df.text[0]=='ab' and len(df.text[1])==300_000 and rep.cleaned==1

def test_wrong_encoding(tmp_path):
    (tmp_path/'a.csv').write_bytes('text,label\ncaf\xe9 bar,x\n'.encode('latin-1'))
    refused('a.csv is not utf8', '0xe9', "encoding='latin-1'", source=tmp_path/'a.csv')
    assert read_table(tmp_path/'a.csv', encoding='latin-1')[0].text[0]=='café bar'

def test_headless_csv(tmp_path):
    (tmp_path/'a.csv').write_text('1,good\n2,bad\n')
    refused("no column 'text'", source=tmp_path/'a.csv')
    assert read_table(tmp_path/'a.csv', columns=['label','text'])[0].text.tolist()==['good','bad']

def test_broken_json_lines(tmp_path):
    with lzma.open(tmp_path/'a.jsonl.xz', 'wt') as f: f.write('{"text":"a","label":1}\n{"text":\n[1]\n\n{"text":"\\ud800b","label":2}\n{"label":2}\n')
    refused('line 2 of a.jsonl.xz', 'not JSON', 'and 2 more', source=tmp_path/'a.jsonl.xz')
    df,rep = read_table(tmp_path/'a.jsonl.xz', on_bad='drop')
    assert df.text.tolist()==['a','b'] and df.label.tolist()==['1','2'] and [o[0].split()[1] for o in rep.dropped]==['2','3','6']

def test_targets_of_the_wrong_kind():
    refused('row 1', "column 'label' is a fraction", 'regression=True', source=frame(text=['a','b'], label=[1.,.5]))
    refused('row 1', 'is not a number', "'high'", source=frame(text=['a','b'], label=[1.,'high']), regression=True)
    refused('row 0', 'is not a finite number', source=frame(text=['a'], label=[float('inf')]), regression=True)
    refused('row 0', "column 'p'", 'is neither 0 nor 1', source=frame(text=['a'], p=[2], q=[1]), label_cols=['p','q'])
    assert read_table(frame(text=['a','b'], label=[1.,2.]))[0].label.tolist()==['1','2']

def test_source_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not there: give a .csv'): read_table(tmp_path/'no.csv')
    (tmp_path/'a.xls').write_text('x')
    refused('a.xls is of no kind', source=tmp_path/'a.xls')
    (tmp_path/'e').mkdir()
    refused('holds no .txt', source=tmp_path/'e')
    with pytest.raises(TypeError, match='from a int'): read_table(3)
    refused("valid='dev' is no split", source=frame(text=['a'], label=['x']), valid='dev')
    refused("on_bad is 'skip'", source=frame(text=['a'], label=['x']), on_bad='skip')
    refused("row 0 has 'maybe' in column 'v'", source=frame(text=['a'], label=['x'], v=['maybe']), valid='v')

def test_folder_trees(tmp_path):
    def put(*names):
        for o in names:
            (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/o).write_text(o)
    put('flat/pos/1.txt', 'flat/neg/2.txt')
    assert sorted(read_table(tmp_path/'flat')[0].label)==['neg','pos']
    put('a/train/pos/1.txt', 'a/train/neg/1.txt', 'a/train/unsup/3.txt', 'a/test/pos/4.txt', 'a/train/list.txt')
    df,rep = read_table(tmp_path/'a')
    assert len(df)==2 and 'is_valid' not in df and 'test (1 row)' in str(rep) and 'unsup (1 row)' in str(rep)
    assert read_table(tmp_path/'a', valid='test')[0].is_valid.tolist()==[False,False,True]
    assert len(read_table(tmp_path/'a', label_cols=None)[0])==3
    put('one/1.txt')
    refused("no column 'label'", source=tmp_path/'one')

def test_duplicates_across_parts():
    _,rep = read_table(dict(train=frame(text=['a','b'], label=['x','y']), valid=frame(text=['b','c'], label=['y','x'])))
    assert rep.duplicates==['row 0 of valid'] and 'in both parts' in str(rep) and 'in both parts' in rep._repr_html_()

def test_report_escapes_html(): assert '<b>' not in read_table(frame(text=['a'], label=['<b>']))[1]._repr_html_()

wild = st.text(st.characters(codec=None, categories=None, exclude_categories=[]), max_size=30)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.one_of(wild, st.sampled_from(['',' ','\0','\ud800','😀','xxbos xxpad xxfld','<br />&amp;','مرحبا'])), min_size=6, max_size=20))
def test_any_text_becomes_batches(tok, texts):
    df,_ = read_table(texts, label_cols=None)
    for t in df.text: assert t.encode('utf8').decode('utf8')==t and '\0' not in t
    dls = TextDataLoaders.from_list(texts, ['x','y']*(len(texts)//2)+['x']*(len(texts)%2), tok=tok, bs=4, device='cpu', progress=False)
    n = 0
    for x,y in [*dls.train,*dls.valid]:
        assert x.min()>=0 and x.max()<len(tok) and (x[:,0]==tok.bos_id).all()
        n += len(x)
    assert n==len(texts)
    lm = TextDataLoaders.from_list(texts*2, is_lm=True, valid_pct=.5, tok=tok, bs=4, device='cpu', progress=False)
    assert all(x.shape==y.shape for x,y in lm.train)

@given(wild)
def test_cleaning_is_idempotent_and_leaves_clean_text_alone(t):
    c = clean_chars(t)
    assert clean_chars(c)==c
    if '\0' not in t and not any('\ud800'<=o<='\udfff' for o in t): assert c==t

@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=['Cs','Cc']), min_size=1), st.sampled_from(['x','y'])), min_size=2, max_size=10))
def test_csv_and_jsonl_give_back_what_was_written(tmp_path_factory, rows):
    d = tmp_path_factory.mktemp('t')
    df = pd.DataFrame(rows, columns=['text','label'])
    df.to_csv(d/'a.csv', index=False)
    df.to_csv(d/'a.tsv', index=False, sep='\t')
    (d/'a.jsonl').write_text(''.join(json.dumps(dict(text=t, label=y))+'\n' for t,y in rows), encoding='utf8')
    for f in ('a.csv','a.tsv','a.jsonl'): assert read_table(d/f)[0][['text','label']].values.tolist()==[list(o) for o in rows], f

@pytest.fixture(scope='module')
def learn(tok):
    dls = TextDataLoaders.from_list(['the cat sat','a dog ran']*9, ['x','y']*9, tok=tok, bs=4, device='cpu', progress=False)
    return text_classifier_learner(dls, None, config=dict(emb_sz=8, n_hid=8, n_layers=1, output_p=.1), verbose=False)

@pytest.mark.parametrize('t', ['',' \t\n','\0','\ud800','😀👩‍👩‍👧','שלום عالم','Żółw мир 世界 مرحبا','x'*1_000_000,'xxbos xxpad'])
def test_any_text_is_answered(learn, t):
    r = learn.predict(t)
    assert r.label in ('x','y') and abs(sum(r.probs.values())-1)<1e-5
    assert learn.predict([t,'the cat'])[0].probs==pytest.approx(r.probs, abs=1e-5)

@pytest.mark.parametrize('bad', [None,float('nan'),3,b'bytes'])
def test_what_is_not_text_is_not_answered(learn, bad):
    for o in (bad,['a',bad]):
        with pytest.raises(TypeError, match=f'{"text 1 is " if isinstance(o, list) else ""}.* {type(bad).__name__}: give a string'): learn.predict(o)
    assert learn.predict([])==[] and learn.predictor().probs('the cat').shape==(1,2)

def test_an_answer_that_is_no_number_is_not_given(learn):
    p = next(learn.model.encoder.parameters())
    was = p.data.clone()
    try:
        p.data.fill_(float('inf'))
        with pytest.raises(ValueError, match='the answer to text 0 is not a number: the weights have diverged'): learn.predict(['the cat','a dog'])
    finally: p.data.copy_(was)
    assert learn.predict('the cat').label in ('x','y')

def test_an_answer_can_be_shown_and_written_whatever_the_text(learn, tmp_path):
    df = learn.predictor().predict_frame(['a\ud800b','c\0d'], progress=False)
    df.to_csv(tmp_path/'a.csv', index=False)
    assert df.text.tolist()==['ab','cd'] and learn.predict('a\ud800b')._repr_html_().encode('utf8')

@pytest.mark.parametrize('texts,says', [([],'nothing to learn a vocabulary from'),(['',' \n'],'nothing to learn a vocabulary from'),(['a'],'can not fill a vocabulary of 5,000 pieces; give vocab_sz=')])
def test_too_little_to_train_a_vocabulary(texts, says):
    with pytest.raises(ValueError, match=says): train_subword(texts, vocab_sz=5000, n_threads=1)

@pytest.mark.parametrize('bad', [None,float('nan'),b'bytes'])
def test_what_is_not_text_trains_no_vocabulary(bad):
    with pytest.raises(TypeError, match=f'text 1 is .* a {type(bad).__name__}, not text'): train_subword(['the cat sat']+[bad]+['a dog']*300, vocab_sz=280, n_threads=1)

def test_a_sample_of_labels_that_are_not_there():
    df = frame(text=['a','b'], label=[None,None])
    with pytest.raises(ValueError, match="column 'label' holds no label at all"): few_shot(df, 1)
    with pytest.raises(ValueError, match="no column 'lable': give label=, one of 'text', 'label'"): few_shot(df, 1, label='lable')

def test_a_vocabulary_or_labels_of_the_wrong_size(learn, tok, tmp_path):
    small = train_subword(['the cat sat on the mat']*9, vocab_sz=280, n_threads=1, hard_vocab_limit=False)
    for save in (lambda: save_classifier(tmp_path/'c', learn.model, small, ['x','y']), lambda: save_encoder(tmp_path/'c', learn.model.encoder, small)):
        with pytest.raises(ArtefactError, match=f'a vocabulary of {len(small)} entries does not belong to this model, which has {len(tok)}: give'): save()
    with pytest.raises(ArtefactError, match='3 labels for a classifier of 2 outputs: give a label for each'): save_classifier(tmp_path/'c', learn.model, tok, list('xyz'))
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('dtype', [None,'fp16'])
def test_saving_says_nothing_and_gives_the_folder(learn, tok, tmp_path, dtype, capfd, recwarn):
    lm = language_model(len(tok), emb_sz=8, n_hid=8, n_layers=1)
    assert save_language_model(tmp_path/'lm', lm, tok, dtype=dtype)==tmp_path/'lm' and learn.save(tmp_path/'c', dtype=dtype)==tmp_path/'c'
    assert capfd.readouterr()==('','') and not list(recwarn)
    assert load_language_model(tmp_path/'lm').tok.vocab==tok.vocab and load_classifier(tmp_path/'c').config['labels']==['x','y']

def test_a_loss_that_is_not_finite_stops_with_a_reason(learn):
    class Burst(Callback):
        def after_pred(self):
            if self.train_iter==2: self.learn.pred = self.learn.pred*float('nan')
    before = {}
    class Keep(Callback):
        order = 98
        def before_batch(self): before.update({k:v.clone() for k,v in self.model.state_dict().items()})
    with learn.no_bar(),learn.no_logging(),pytest.raises(NonFiniteError, match=r'epoch 0, batch 2 of 4 \(step 2\): loss nan.*Likely cause: .*as they were before'):
        learn.fit(1, 1e-3, cbs=[Burst(),Keep()])
    assert all(v.equal(before[k]) for k,v in learn.model.state_dict().items())

@pytest.mark.parametrize('cols', [('text','label','label'),('text','label','text')])
def test_columns_of_one_name(cols):
    df = pd.DataFrame([('a text','x','y')]*4, columns=cols)
    with pytest.raises(ValueError, match='has 2 columns called'): read_table(df)

def test_texts_in_both_parts_are_told_for_a_random_split_too(tok, tmp_path):
    df = pd.DataFrame(dict(text=['the same text again']*20+[f'another text {i}' for i in range(20)], label=['a','b']*20))
    report = TextDataLoaders.from_df(df, tok=tok, cache=tmp_path, bs=4, progress=False).report
    assert 'in both parts' in str(report) and all('row' in o for o in report.duplicates)

@pytest.mark.parametrize('pct', [0,1,-.1,20])
def test_a_share_to_validate_with_that_is_none(tok, pct):
    with pytest.raises(ValueError, match=f'valid_pct={pct} is no share to validate with'): TextDataLoaders.from_list(['a','b']*9, ['x','y']*9, valid_pct=pct, tok=tok)

def test_labels_that_differ_only_in_white_space_are_told(tok):
    kw = dict(tok=tok, bs=4, device='cpu', progress=False)
    report = TextDataLoaders.from_list(['a','b','c','d']*5, [' pos','pos','neg','Pos']*5, **kw).report
    assert "' pos' and 'pos' and 'Pos' differ only in white space" in str(report) and "white space" in report._repr_html_()
    assert 'white space' not in str(TextDataLoaders.from_list(['a','b']*9, ['pos','neg']*9, **kw).report)

def test_a_single_class_is_refused(tok):
    df = frame(text=['a','b']*9, label=['x']*18)
    with pytest.raises(ValueError, match="every text to train with has the label 'x', and a classifier needs two classes or more"): TextDataLoaders.from_df(df, tok=tok, progress=False)
    dls = DataBlock((TextBlock(tok),CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'), splitter=IndexSplitter([0,1])).dataloaders(df, bs=4, device='cpu')
    with pytest.raises(ValueError, match="all labels are 'x'"): text_classifier_learner(dls, None)
    assert TextDataLoaders.from_df(df, is_lm=True, tok=tok, bs=2, progress=False).is_lm

@pytest.mark.parametrize('v', [float('inf'),-float('inf'),np.float32('inf')])
def test_an_infinite_label(v): refused('row 1', "column 'label'", 'is not a finite number', source=frame(text=['a','b'], label=[1.,v]))

@pytest.mark.parametrize('name', ['bs','val_bs','seq_len'])
@pytest.mark.parametrize('n', [0,-3,2.5,'8'])
def test_sizes_below_one(tok, name, n):
    kw = {'tok':tok, 'is_lm':True, 'progress':False, name:n}
    with pytest.raises(ValueError, match=f'{name}={n!r}: give the number of .*, 1 or more'): TextDataLoaders.from_list(['the cat sat on the mat']*9, **kw)

def test_a_size_of_nothing_where_loaders_are_made_by_hand(tok):
    c = MemoryCorpus([[2,3,4]]*9)
    for make in (lambda: LMLoader(c, bs=0), lambda: LMLoader(c, seq_len=0), lambda: BucketLoader(c, bs=0), lambda: TextDataLoaders.from_sets(c, c, bs=0)):
        with pytest.raises(ValueError, match='=0: give the number of'): make()

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_a_gpu_that_is_not_there(learn, tok, tmp_path):
    learn.save(tmp_path/'c')
    calls = (lambda: TextDataLoaders.from_list(['a','b']*9, ['x','y']*9, tok=tok, device='cuda'), lambda: TextPredictor.load(tmp_path/'c', device='cuda:1'),
        lambda: BucketLoader(MemoryCorpus([[2,3]]*9), device='cuda'))
    for call in calls:
        with pytest.raises(ValueError, match="device='cuda(:1)?': PyTorch finds no CUDA GPU here"): call()

PACKERS = {'.gz':gzip.compress, '.xz':lzma.compress, '.bz2':bz2.compress}
rng = np.random.default_rng(0)
LINES = {'.csv':'text,label\n'+''.join(f'{rng.integers(10**9)} a,xy\n' for _ in range(9000)), '.txt':'one\n\ntwo\n'*9000}
LINES['.jsonl'] = ''.join(json.dumps(dict(text=f'{rng.integers(10**9)}'))+'\n' for _ in range(9000))

@pytest.mark.parametrize('pack', PACKERS)
@pytest.mark.parametrize('kind', LINES)
@pytest.mark.parametrize('harm', [lambda b: b[:len(b)//2], lambda b: b'no archive'+b, lambda b: b[:len(b)//2]+bytes(200)+b[len(b)//2+200:]], ids=['cut','foreign','changed'])
def test_a_damaged_archive(tmp_path, pack, kind, harm):
    p = tmp_path/f'a{kind}{pack}'
    p.write_bytes(PACKERS[pack](LINES[kind].encode()))
    kw = dict(label_cols=None)
    assert len(read_table(p, **kw)[0])>=9000
    p.write_bytes(harm(p.read_bytes()))
    refused(p.name, 'damaged', source=p, **kw)

@pytest.mark.parametrize('name', ['A.CSV','a.Csv.GZ','A.TSV','A.JSONL','A.TXT'])
def test_endings_in_capitals(tmp_path, tok, name):
    p,sep = tmp_path/name,'\t' if 'T' in name else ','
    kind = name.lower().split('.')[1]
    s = dict(jsonl='{"text":"a cat","label":"x"}\n'*2, txt='a cat\n\na dog\n').get(kind, f'text{sep}label\n'+f'a cat{sep}x\n'*2)
    p.write_bytes(gzip.compress(s.encode()) if name.endswith('GZ') else s.encode())
    df,_ = read_table(p, label_cols=None if kind=='txt' else 'label')
    assert len(df)==2 and df.text[0].strip()=='a cat'
    dls = TextDataLoaders.from_list(['a cat','a dog']*9, ['x','y']*9, tok=tok, bs=4, device='cpu', progress=False)
    assert kind=='txt' or name.endswith('GZ') or dls.test_dl(str(p)).n==2
    (tmp_path/'d').mkdir()
    p.rename(tmp_path/'d'/p.name)
    assert len(read_table(tmp_path/'d', label_cols=None)[0])==(1 if kind=='txt' else 2)

def test_a_repeated_index_names_the_row_by_its_position():
    df = pd.concat([frame(text=['a','b'], label=['x','y']),frame(text=['c',None], label=['x','y'])])
    refused('row at position 3', "column 'text'", 'is missing', source=df)
    got,rep = read_table(df, on_bad='drop')
    assert got['at'].tolist()==[f'row at position {i}' for i in range(3)] and rep.dropped[0][0]=='row at position 3'
    refused('row 1 of train', source=dict(train=df.iloc[2:], valid=df.iloc[:2]))

@pytest.mark.parametrize('enc,hint', [('utf-16','utf-16'),('utf-16-le','utf-16-le'),('utf-16-be','utf-16-be')])
@pytest.mark.parametrize('kind', ['.csv','.jsonl','.txt','.csv.gz'])
def test_utf_16_gets_a_hint(tmp_path, enc, hint, kind):
    p,s = tmp_path/f'a{kind}','{"text":"a caf\xe9"}\n' if kind=='.jsonl' else 'text\na caf\xe9\n'
    p.write_bytes(gzip.compress(s.encode(enc)) if kind.endswith('gz') else s.encode(enc))
    refused(f'{p.name} is UTF-16 text: give encoding={hint!r}', source=p, label_cols=None)
    assert 'café' in read_table(p, label_cols=None, encoding=hint)[0].text.iloc[-1]

def test_an_encoding_that_there_is_not(tmp_path):
    (tmp_path/'a.csv').write_text('text\na\n')
    refused("encoding='utf9' is unknown to Python", source=tmp_path/'a.csv', encoding='utf9', label_cols=None)

@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(exclude_categories=['Cs','Cc','Zl','Zp']), min_size=1).filter(str.strip), enc=st.sampled_from(['utf8','utf-16','utf-16-le','utf-16-be']))
def test_a_text_file_is_read_in_its_encoding_or_the_encoding_is_named(tmp_path_factory, text, enc):
    "Read with the right encoding a text is itself; UTF-16 is never read as UTF-8, and UTF-8 never taken for UTF-16"
    p = tmp_path_factory.mktemp('e')/'a.txt'
    p.write_bytes(text.encode(enc))
    assert read_table(p, label_cols=None, encoding=enc)[0].text.tolist()==[text.removeprefix('\ufeff') if enc!='utf-16' else text]
    if enc=='utf8': assert read_table(p, label_cols=None)[0].text.tolist()==[text.removeprefix('\ufeff')]
    elif enc=='utf-16': refused("give encoding='utf-16'", source=p, label_cols=None)

def test_more_labels_than_there_are(learn):
    p = learn.predictor()
    assert list(p.predict_frame(['a cat','a dog'], k=5, progress=False))==['text','label','prob','label2','prob2']
    assert p.predict('a cat').top(9)==list(p.predict('a cat').probs.items())
    with pytest.raises(ValueError, match='k=0: give the number of labels'): p.predict_frame(['a'], k=0)

@pytest.mark.parametrize('labels,says', [(['x'],'2 texts and 1 label'),(['x','z'],"label 'z' was not in training"),([],'do not go together')])
def test_an_evaluation_that_makes_no_sense(learn, labels, says):
    with pytest.raises(ValueError, match=says): learn.predictor().evaluate(['a','b'], labels)
    with pytest.raises(ValueError, match='nothing to evaluate on'): learn.predictor().evaluate([], [])

@settings(max_examples=15, deadline=None)
@given(n=st.integers(0, 4), prompt=st.sampled_from(['','the cat','שלום']))
def test_text_of_any_length_is_generated(tok, n, prompt):
    lm = language_model(len(tok), emb_sz=8, n_hid=8, n_layers=1)
    ids = tok.encode(prompt)
    assert generate_text(lm, tok, prompt, n).startswith(tok.decode(ids)) and len(tok.encode(generate_text(lm, tok, prompt, 0)))==len(ids)
    with pytest.raises(ValueError, match='n=-1: give the number of tokens'): generate_text(lm, tok, prompt, -1)
