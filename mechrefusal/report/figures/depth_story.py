"""Where refusal sits over training, beside how often the model refuses: a stand-in for the figure of that name."""

import pandas as pd
import plotly.graph_objects as go

from mechrefusal.report.figures import carrier_scores


def depth_story(carrier: pd.DataFrame, rates: pd.DataFrame) -> go.Figure:
    """Depth of the carrier over steps (tables `carrier` and `rates`)."""
    return carrier_scores.carrier_layers(carrier)
