"""An explanation with made-up but plausible numbers, and texts that would be markup if they could."""

from rlhfkit.rundir.explanations import (
    Attribution,
    Completeness,
    DeletionCheck,
    Divergence,
    Explained,
    Explanation,
    Lens,
    LensToken,
    PartEffect,
    Position,
    Reasons,
    Shift,
    TokenNumbers,
)

HOSTILE = "<script>document.title='taken'</script>"
TEXTS = ("The", " film", f" {HOSTILE}", " is", " won", "derful", " &", " warm", ".\n", "<|eos|>")
KLS = (0.0, 0.06, 0.3, 0.02, 1.4, 0.7, 0.0, 0.21, 0.0, 0.0)
SHARES = (0.01, 0.0, -0.4, 0.02, 0.9, 1.3, -0.05, 0.5, 0.0, 0.2)


def check(*, is_faithful: bool) -> DeletionCheck:
    return DeletionCheck(
        num_deleted=(1, 2, 5),
        scores=(0.9, 0.1, -0.3),
        random_scores=(2.0, 1.8, 1.2),
        drop=1.9 if is_faithful else 0.3,
        random_drop=0.4,
        p_value=0.005 if is_faithful else 0.61,
        is_faithful=is_faithful,
    )


def explained(*, is_faithful: bool = True, **more: object) -> Explained:
    up = (Shift(text=" won", before=0.02, after=0.31), Shift(text=HOSTILE, before=0.001, after=0.04))
    down = (Shift(text=" bad", before=0.3, after=0.01),)
    completeness = Completeness(total=2.4, expected=2.5, error=0.04, num_steps=50, is_complete=True)
    one = Explained(
        prompt=f"Review {HOSTILE}:",
        response="".join(TEXTS[:-1]),
        finish_reason="eos",
        score=2.1,
        shaped_score=2.1,
        ref_kl=2.69,
        kl_coef=0.15,
        tokens=TokenNumbers(
            text=TEXTS,
            logprob=tuple(-0.5 for _ in TEXTS),
            ref_logprob=tuple(-0.5 - kl for kl in KLS),
            reward=tuple(-0.15 * kl for kl in KLS),
            value=tuple(0.1 * at for at in range(10)),
            advantage=tuple(0.2 - 0.03 * at for at in range(10)),
            returns=tuple(0.3 + 0.07 * at for at in range(10)),
        ),
        positions=tuple(Position(kl=kl, up=up, down=down) for kl in KLS),
        divergence=Divergence(before="The film", after=HOSTILE, shared="", index=0, old=up[0], new=up[1]),
        reasons=Reasons(
            source="reward model",
            score=2.1,
            prefix_scores=tuple(0.2 * at for at in range(10)),
            attributions=(
                Attribution(method="leaving out single tokens", values=SHARES, check=check(is_faithful=is_faithful)),
                Attribution(
                    method="integrated gradients",
                    values=SHARES,
                    check=check(is_faithful=False),
                    completeness=completeness,
                ),
            ),
            spans=(PartEffect(text=HOSTILE, effect=1.1), PartEffect(text=" warm", effect=-0.2)),
            sentences=(PartEffect(text=HOSTILE, effect=1.1), PartEffect(text="b.", effect=0.2)),
            notes=("a note",),
        ),
        lens=Lens(
            kl=(0.01, 0.02, 0.3),
            agreement=(0.2, 0.5, 1.0),
            tokens=(
                LensToken(
                    index=4,
                    new=HOSTILE,
                    old=" bad",
                    new_after=(0.01, 0.1, 0.4),
                    old_after=(0.2, 0.2, 0.1),
                    new_before=(0.01, 0.02, 0.03),
                    overtakes=3,
                ),
            ),
        ),
    )
    return one.model_copy(update=more)


def explanation(*prompts: Explained) -> Explanation:
    return Explanation(
        policy="runs/x/policy",
        reference=f"runs/{HOSTILE}/sft",
        reward_name="reward model",
        temperature=1.0,
        notes=("a note on all",),
        prompts=prompts or (explained(), explained(is_faithful=False)),
    )
