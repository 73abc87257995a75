"The commands: what a user can mend is one sentence and exit code 2, a fault in the program is a traceback"
import shlex,subprocess,sys
import pytest
from fastcore.script import anno_parser
from hypothesis import given,settings,strategies as st
from ulmfit_t5 import cli
from ulmfit_t5.data import datasets as D
from ulmfit_t5.data.tokenizer import train_subword
from ulmfit_t5.models.awd_lstm import AWDLSTM
from ulmfit_t5.models.heads import TextClassifier
from ulmfit_t5.artefacts import save_classifier
from ulmfit_t5.inference import TextPredictor
from ulmfit_t5.pretrain import command_line,pretrain

@pytest.fixture(scope='module')
def clas(tmp_path_factory):
    tok = train_subword(['the cat sat on the mat']*9, vocab_sz=280, n_threads=1, hard_vocab_limit=False)
    return save_classifier(tmp_path_factory.mktemp('c')/'clas', TextClassifier(AWDLSTM(len(tok), emb_sz=8, n_hid=8, n_layers=1), 2), tok, ['x','y'])

REFUSED = {'nothing':"'nothing' is not a command: there are demo, pretrain", 'predict nope x':'there is no folder nope: give that of a saved classifier',
    'predict {clas} x --k 0':'--k 0: give the number of labels', 'predict {tmp} x':'is not an artefact: no manifest.json',
    'pretrain nothere.txt alsonot.txt {tmp}/run':'nothere.txt is not there: give a text file or a folder', 'datasets --task foo':"no dataset has the task 'foo': the tasks are",
    'pretrain {tmp}/a.txt {tmp}/nothere.txt {tmp}/run':'nothere.txt is not there', 'pretrain {tmp}/a.txt {tmp}/b.txt {tmp}/run --budget soon':"a time budget of 'soon' is not understood",
    'pretrain {tmp}/a.txt {tmp}/b.txt {tmp}/run --config huge':"config='huge' is not known: choose compact, full, paper or qrnn",
    'pretrain {tmp}/a.txt {tmp}/a.txt {tmp}/run':'is among the texts to train on', 'pretrain {tmp}/a.txt {tmp}/b.txt {tmp}/run --tokenizer nope':"'nope' is not bundled"}

@pytest.mark.parametrize('words', REFUSED)
def test_refused_in_one_sentence(words, clas, tmp_path, capsys):
    for o in 'ab': (tmp_path/f'{o}.txt').write_text(f'one {o}\n\ntwo {o}\n')
    with pytest.raises(SystemExit) as e: cli.main(words.format(clas=clas, tmp=tmp_path).split())
    out,err = capsys.readouterr()
    assert e.value.code==2 and out=='' and err.startswith('ulmfit_t5: ') and REFUSED[words] in err and err.count('\n')==1
    assert not (tmp_path/'run').exists()

def test_in_a_process_of_its_own():
    r = subprocess.run([sys.executable,'-m','ulmfit_t5.cli','predict','nope','x'], capture_output=True, text=True)
    assert (r.returncode,r.stdout,r.stderr.count('\n'))==(2,'',1) and 'there is no folder nope' in r.stderr

@pytest.mark.parametrize('words', ['predict','pretrain a.txt','datasets --tusk foo','demo --minutes soon'])
def test_options_that_do_not_parse_are_the_parsers_matter(words, capsys):
    with pytest.raises(SystemExit) as e: cli.main(words.split())
    assert e.value.code==2 and f'usage: ulmfit_t5 {words.split()[0]}' in capsys.readouterr().err

@pytest.mark.parametrize('fault', [ValueError,KeyError,RuntimeError,IndexError,ZeroDivisionError])
def test_a_fault_of_the_program_still_traces(fault, clas, monkeypatch):
    def broken(*args, **kwargs): raise fault('a fault')
    monkeypatch.setattr(TextPredictor, 'predict', broken)
    with pytest.raises(fault, match='a fault'): cli.main(['predict',str(clas),'x'])

def test_a_fault_within_the_package_still_traces(monkeypatch):
    monkeypatch.setattr(D, '_registry', lambda: {'a':D.DatasetSpec('a', '', 'classes', [], None, splits=5)})
    with pytest.raises(TypeError): cli.main(['datasets'])
    monkeypatch.setattr(D, '_found', lambda s: max([]))
    monkeypatch.setattr(D, '_registry', lambda: {'a':D.DatasetSpec('a', '', 'classes', [], None)})
    with pytest.raises(ValueError, match='empty'): cli.main(['datasets'])

def test_answers(clas, capsys, monkeypatch):
    cli.main(['predict',str(clas),'the cat','a\udcff\0b','--k','1'])
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0],lines[2]]==['the cat','ab'] and all(l.strip().split()[1] in 'xy' for l in lines[1::2])
    monkeypatch.setattr('sys.stdin', iter(['from a pipe\n']))
    cli.main(['predict',str(clas)])
    assert capsys.readouterr().out.startswith('from a pipe\n  -> ')
    cli.main([])
    assert 'ulmfit_t5 pretrain --help' in capsys.readouterr().out

@settings(max_examples=40, deadline=None)
@given(bs=st.integers(1, 999), lr=st.floats(1e-6, 1), save_every=st.floats(0, 999), backwards=st.booleans(),
    corpus=st.text(st.characters(exclude_categories=['Cs','Cc']), max_size=20))
def test_the_command_on_a_card_means_what_was_given(bs, lr, save_every, backwards, corpus):
    said = dict(texts='a', valid='b', out='c', bs=bs, lr=lr, save_every=save_every, backwards=backwards, corpus='x'+corpus, vocab_sz=9, seq_len=7)
    words = shlex.split(command_line(pretrain, said))
    assert words[:2]==['ulmfit_t5','pretrain']
    assert vars(anno_parser(pretrain).parse_args(words[2:])).items()>=said.items()
