"""What a person looks at: figures, circuits, pages and a summary for the terminal. Reads tables, never a model.

from mechrefusal import report

report.write("checkpoints/demo")                  # checkpoints/demo/report/index.html
rich.print(report.summary("checkpoints/demo"))
report.figures.layer_by_head(heads).show()        # in a notebook
"""

from mechrefusal.report import circuits, figures, graph
from mechrefusal.report.plans import plan_table
from mechrefusal.report.terminal import attack_costs, judges_and_people, power_table, summary
from mechrefusal.report.writing import write

__all__ = [
    "attack_costs",
    "circuits",
    "figures",
    "graph",
    "judges_and_people",
    "plan_table",
    "power_table",
    "summary",
    "write",
]
