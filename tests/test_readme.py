import os
import re
import subprocess
import sys

from paths import PYTHONPATH, ROOT


def test_the_fifteen_lines_of_the_readme_run(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "bert.encoder.layer.1.output.dense" in result.stdout and "left dense" in result.stdout
    assert (tmp_path / "runs" / "readme" / "final" / "model.safetensors").is_file()


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
