"""What the attacks of training did: the loss that they gained, how much of it training took back, the age of cases."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report import wording
from mechrefusal.report.figures import style, training

_UNIT = "nats a token"


def attack_loss(table: pd.DataFrame) -> go.Figure:
    """Mean target loss of the drawn cases before and after their refresh, nats a token (table `training`).

    The area between the lines is what the attack gained in that step. The cases of two steps are different ones.
    """
    rows = style.drawable(table, "attack_loss_before", "the attack loss before a refresh")
    rows = style.drawable(rows, "attack_loss_after", "the attack loss after a refresh")
    figure, window, names = go.Figure(), training.window_of(rows), style.arms(rows)
    for arm in names:
        own = rows[rows["arm"] == arm].sort_values("step")
        before, after = (own[f"attack_loss_{when}"] for when in ("before", "after"))
        colour, known = style.arm_style(arm, names)[0], before.notna() & after.notna()
        low, high = (training.running_mean(values[known], window) for values in (after, before))
        if known.any():
            figure.add_trace(style.band(list(own["step"][known]), list(low), list(high), colour))
        for values, when, dash in ((before, "before refresh", "solid"), (after, "after refresh", "dot")):
            look = {"label": f"{arm}: {when}", "colour": colour, "dash": dash}
            training.add_line(figure, own["step"], values, window=window, **look)
    figure.update_yaxes(title=_UNIT, rangemode="tozero")
    return training.finish(figure, title="Attack loss of the drawn cases", window=window)


def exchange(table: pd.DataFrame) -> pd.DataFrame:
    """What each step's refreshes gained, and what training had taken back before them (table `refreshes`).

    Returns:
        One row an arm and step, in nats a token: `gained`, mean of loss_before − loss_after; `taken_back`, mean of
        loss_before − the loss_after that the same case's last refresh had left; `n` cases, `n_again` of them with a
        last refresh. A case that was reset in between starts anew: it counts as one without.
    """
    rows = table.sort_values("step", kind="stable")
    last = rows.groupby(["arm", "case"], sort=False)[["loss_after", "age"]].shift()
    rows["gained"] = rows["loss_before"] - rows["loss_after"]
    rows["taken_back"] = (rows["loss_before"] - last["loss_after"]).where(rows["age"] == last["age"] + 1)
    steps = rows.groupby(["arm", "step"], as_index=False)
    return steps.agg(
        gained=("gained", "mean"),
        taken_back=("taken_back", "mean"),
        n=("gained", "count"),
        n_again=("taken_back", "count"),
    )


def attack_exchange(table: pd.DataFrame) -> go.Figure:
    """What GCG gained in each step and what training took back since, nats a token (table `refreshes`).

    Solid: the fall of a case's loss in its refresh. Dotted: its rise between two refreshes, without resets. Where they
    meet, training undoes all that the attack finds.
    """
    for column in ("loss_before", "loss_after"):
        style.drawable(table, column, "what attack and training win from each other")
    rows = style.drawable(exchange(table), "gained", "what attack and training win from each other")
    figure, window, names = go.Figure(), training.window_of(rows), style.arms(rows)
    for arm in names:
        own, colour = rows[rows["arm"] == arm], style.arm_style(arm, names)[0]
        for value, words, dash in (("gained", "GCG gained", "solid"), ("taken_back", "training took back", "dot")):
            look = {"label": f"{arm}: {words}", "colour": colour, "dash": dash}
            training.add_line(figure, own["step"], own[value], window=window, **look)
    again = int(rows["n_again"].sum())
    note = (
        f"{int(rows['n'].sum())} refreshes, {again} of a case refreshed before"
        if again
        else "no case was refreshed again"
    )
    figure.update_yaxes(title=_UNIT, rangemode="tozero")
    return training.finish(figure, title="What attack and training win from each other", window=window, note=note)


def pool_age(table: pd.DataFrame) -> go.Figure:
    """Age of the refreshed cases over optimiser steps, in refreshes since the initial suffix (table `refreshes`).

    Line: running mean of the steps' means. Band: youngest to oldest of a step. A reset of the pool brings the youngest
    back to 1.
    """
    rows = style.drawable(table, "age", "the age of refreshed cases")
    ages = rows.groupby(["arm", "step"], as_index=False)["age"].agg(["mean", "min", "max"]).dropna(subset="mean")
    figure, window, names = go.Figure(), training.window_of(ages), style.arms(ages)
    for arm in names:
        own, colour = ages[ages["arm"] == arm], style.arm_style(arm, names)[0]
        figure.add_trace(style.band(list(own["step"]), list(own["min"]), list(own["max"]), colour))
        mean = training.running_mean(own["mean"], window)
        training.add_line(figure, own["step"], mean, window=1, label=arm, colour=colour)
    figure.update_yaxes(title="age (refreshes)", rangemode="tozero")
    title, note = "Age of the refreshed cases", "band: youngest to oldest of a step"
    return training.finish(figure, title=title, window=window, note=note)


def cases_refreshed(table: pd.DataFrame) -> go.Figure:
    """How many different cases have been refreshed at least once, over optimiser steps (table `refreshes`)."""
    counted = table.assign(first=1.0).sort_values("step", kind="stable")
    rows = style.drawable(counted, "first", "the number of refreshed cases")
    rows["first"] = (~rows.duplicated(["arm", "case"])).astype(float)
    new = rows.groupby(["arm", "step"], as_index=False)["first"].sum()
    figure, names = go.Figure(), style.arms(new)
    for arm in names:
        own, colour = new[new["arm"] == arm], style.arm_style(arm, names)[0]
        training.add_line(figure, own["step"], own["first"].cumsum(), window=1, label=arm, colour=colour)
    figure.update_yaxes(title="different cases", rangemode="tozero")
    totals = ", ".join(
        f"{wording.for_plotly(arm)} {int(total)}" for arm, total in new.groupby("arm")["first"].sum().items()
    )
    title = "Cases refreshed at least once"
    return training.finish(figure, title=title, window=1, note=f"at the end: {totals}")
