"""CRD's memory where several processes share a batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from kdexport.distill.contrast_memory import ContrastMemory

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from kdexport.distill.contrast_memory import ContrastMemory

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
memory = ContrastMemory((3,), (5,), samples=20, width=4, negatives=8, momentum=0.5, temperature=0.07)
student, teacher, indices = torch.randn(7, 3), torch.randn(7, 5), torch.randperm(20)[:7]
torch.manual_seed(rank)  # each draws its own negatives
mine = slice(rank, None, 2)  # 4 and 3
memory(student[mine], teacher[mine], indices[mine])
torch.save(memory.state_dict(), f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


def test_processes_remember_what_all_of_them_saw(tmp_path: Path) -> None:
    (tmp_path / "share.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*launch, str(tmp_path / "share.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.manual_seed(0)
    alone = ContrastMemory((3,), (5,), samples=20, width=4, negatives=8, momentum=0.5, temperature=0.07)
    student, teacher, indices = torch.randn(7, 3), torch.randn(7, 5), torch.randperm(20)[:7]
    alone(student, teacher, indices)
    for name in ("student_bank", "teacher_bank"):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], alone.state_dict()[name])
    torch.testing.assert_close(first["log_normalizers"], second["log_normalizers"], rtol=0, atol=0)
