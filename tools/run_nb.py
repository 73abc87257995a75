"Run one notebook in this process, as a reader would, with warnings from our own modules as errors: `run_nb.py NB [FLAG ...]`"
import sys,warnings
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb

def main(nb, flags):
    "Exit 0 where every cell ran; cells marked slow or gpu run only where `flags` names them"
    cfg = get_config(Path(nb).resolve().parent)
    warnings.filterwarnings('error', module=r'ulmfit_t5(\.|$)')
    ok,secs = test_nb(Path(nb).resolve(), skip_flags=cfg.tst_flags, force_flags=flags, basepath=cfg.config_path, cell_timeout=cfg.cell_timeout)
    print(f"{nb}: {'passed' if ok else 'failed'} in {secs:.1f} s")
    return 0 if ok else 1

if __name__=='__main__': sys.exit(main(sys.argv[1], sys.argv[2:]))
