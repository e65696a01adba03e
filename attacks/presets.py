"""The attacks of the paper and their relatives, each a composition of parts.

The paper (Sec. "Evaluation Details") names the authors' code and few constants; what it leaves open
follows that code. Labels: TI's code takes Inception-ResNet-v2's prediction, right on 99.8 % of
NIPS-2017, hence "true"; DIM's and SI-NI's take the source's own. VT's, Admix's, GRA's and
BSR's do, too, but their presets take the true label, as TransferAttack does (`NI|VT|OWN` takes the source's own).
TI's code adds .4 of the auxiliary heads' loss; timm's conversions have no such heads, so the presets do
without (compose with `AUX` where a source has one).
"""

from rdp_bench.attacks.gradient_sign import GradientSign, compose
from rdp_bench.attacks.parts.copies import ScaleCopies
from rdp_bench.attacks.parts.diversity import Diversity
from rdp_bench.attacks.parts.labels import LabelChoice, Targeted
from rdp_bench.attacks.parts.momentum import Momentum
from rdp_bench.attacks.parts.nesterov import Nesterov
from rdp_bench.attacks.parts.random_start import RandomStart
from rdp_bench.attacks.parts.smoothing import Smoothing
from rdp_bench.attacks.parts.steps import Steps
from rdp_bench.protocols import Attack
from rdp_bench.registry import attack

attack.label_scheme("composition", r".*\|.*|[A-Z]+(\(.*\))?", "MI|DI(p=.7)|TI(15)|SI(5)", compose)


@attack("fgsm", source="Goodfellow et al. 2015, Sec. 4")
def fgsm() -> Attack:
    """Fast Gradient Sign Method: one step of eps along the sign of the gradient."""
    return GradientSign((Steps(1),))


@attack("i-fgsm", source="Kurakin et al. 2016, Sec. 2.2")
def i_fgsm() -> Attack:
    """Iterative FGSM: 10 steps of eps/10, no momentum."""
    return GradientSign()


@attack("mi-fgsm", source="Dong et al. 2018, Alg. 1")
def mi_fgsm() -> Attack:
    """Momentum Iterative FGSM: 10 steps, momentum 1."""
    return GradientSign((Momentum(),))


@attack("ni-fgsm", source="Lin et al. 2020, Eq. 6-7")
def ni_fgsm() -> Attack:
    """Nesterov Iterative FGSM: the gradient is taken one momentum step ahead."""
    return GradientSign((Momentum(), Nesterov()))


# RDP states probability .7 and cites this code, whose step is 1/255 and whose count is Kurakin's (20 at
# eps 16). "DIM" means momentum 1; the code's default 0 is their DI-FGSM.
@attack("dim", source="Xie et al. 2019, Sec. 3.3; cihangxie/DI-2-FGSM")
def dim() -> Attack:
    """Momentum and input diversity (p .7): random nearest resize and grey padding, to 330 at 299 pixels."""
    return GradientSign((Steps(None, alpha=1.0), Momentum(), Diversity(), LabelChoice()))


@attack("ti-dim", source="Dong et al. 2019; dongyp13/Translation-Invariant-Attacks")
def ti_dim() -> Attack:
    """Momentum, input diversity (p .7) and a 15 x 15 Gaussian over the gradient."""
    return GradientSign((Momentum(), Diversity(), Smoothing()))


@attack("si-ni-fgsm", source="Lin et al. 2020, Alg. 1; JHL-HUST/SI-NI-FGSM")
def si_ni_fgsm() -> Attack:
    """Nesterov momentum over five copies of falling contrast."""
    return GradientSign((Momentum(), Nesterov(), ScaleCopies(), LabelChoice()))


# No released code composes all four as RDP names them; the same laboratory's later code (JHL-HUST/VT)
# does, with its own probability .5, padded size 331 and way back to 299, and a 7 x 7 kernel.
@attack("sini-tidim", source="Lin et al. 2020, Sec. 3.3; JHL-HUST/SI-NI-FGSM, JHL-HUST/VT")
def sini_tidim() -> Attack:
    """SI-NI with input diversity (p .5, drawn for each copy) and a 7 x 7 Gaussian over the gradient."""
    diversity = Diversity(0.5, diversity_size=331 / 299, resize_back=True)
    return GradientSign((Momentum(), Nesterov(), ScaleCopies(), diversity, Smoothing(7), LabelChoice()))


@attack("pgd", source="Madry et al. 2018, Sec. 2.1")
def pgd() -> Attack:
    """Projected gradient descent: random start, 10 steps of 2.5 eps/10."""
    return GradientSign((RandomStart(), Steps(step_ratio=2.5)))


@attack("pgd-targeted", source="Xie et al. 2019a, Sec. 6.1; facebookresearch/ImageNet-Adversarial-Training")
def pgd_targeted() -> Attack:
    """PGD-10 towards a random wrong class: random start, steps of max(1, eps/10)/255."""
    return GradientSign((Targeted(), RandomStart(clip_start=False), Steps(alpha_floor=1.0)))


# The attacks that follow came after the paper. eps 16/255, 10 steps of eps/10 and momentum 1, unless said.


@attack("vmi-fgsm", source="Wang & He 2021, Alg. 1; JHL-HUST/VT")
def vmi_fgsm() -> Attack:
    """Variance tuning: momentum over the gradient plus the variance of 20 neighbours."""
    return compose("MI|VT")


@attack("vni-fgsm", source="Wang & He 2021, Sec. 3.3; JHL-HUST/VT")
def vni_fgsm() -> Attack:
    """Variance tuning with Nesterov's look-ahead."""
    return compose("NI|VT")


@attack("pi-fgsm", source="Gao et al. 2020, Alg. 1; qilong-zhang/Patch-wise-iterative-attack")
def pi_fgsm() -> Attack:
    """Patch-wise steps of 10 eps/10, with the excess spread to neighbouring pixels; no momentum."""
    return compose("PI")


@attack("admix", source="Wang et al. 2021, Alg. 1; JHL-HUST/Admix")
def admix() -> Attack:
    """Three copies with a fifth of another image, at five scales each."""
    return compose("MI|ADMIX")


# The released code has its momentum switched off; papers that compare SSA use momentum 1.
@attack("ssa", source="Long et al. 2022, Alg. 1; yuyang-long/SSA")
def ssa() -> Attack:
    """Twenty copies with a random spectrum."""
    return compose("MI|SSA")


@attack("pgn", source="Ge et al. 2023, Alg. 1; Trustworthy-AI-Group/PGN")
def pgn() -> Attack:
    """Penalised gradient norm: pairs of gradients at 20 neighbours."""
    return compose("MI|PGN")


@attack("bsr", source="Wang et al. 2024, Alg. 1; Trustworthy-AI-Group/BSR")
def bsr() -> Attack:
    """Twenty copies whose 2 x 2 blocks are shuffled and rotated."""
    return compose("MI|BSR")


@attack("sia", source="Wang et al. 2023, Alg. 1; xiaosen-wang/SIT")
def sia() -> Attack:
    """Twenty copies whose 3 x 3 blocks are changed independently."""
    return compose("MI|SIA")


@attack("gra", source="Zhu et al. 2023, Alg. 1; RYC-98/GRA")
def gra() -> Attack:
    """Gradients weighted by their agreement with 20 neighbours, and steps that shrink where signs flip."""
    return compose("MI|GRA")


# 100 steps of 1/255 without momentum, as in the authors' repository, which uses eps 8.
@attack("ilpd", source="Li et al. 2023, Sec. 3.2; qizhangli/ILPD-attack")
def ilpd() -> Attack:
    """Intermediate-level perturbation decay: a tenth of the change of one layer's features."""
    return compose("I(100, alpha=1)|ILPD")


@attack("tgr", source="Zhang et al. 2023, Sec. 3.3; jpzhang1810/TGR")
def tgr() -> Attack:
    """Token gradient regularisation, for vision transformers as sources."""
    return compose("MI|TGR")


# 10 steps of 2/255 without momentum and gamma .2, as in the authors' repository for ResNets.
@attack("sgm", source="Wu et al. 2020; csdongxian/skip-connections-matter")
def sgm() -> Attack:
    """Skip gradient method: gradients of residual branches count a fifth."""
    return compose("I(10, alpha=2)|SGM")


@attack("svre-mi-fgsm", source="Xiong et al. 2022, Alg. 2; JHL-HUST/SVRE")
def svre_mi_fgsm() -> Attack:
    """Stochastic variance reduced ensemble: 4 inner steps per member of the source."""
    return compose("MI|SVRE")
