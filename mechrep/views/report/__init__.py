"""The report: one HTML file made of sections, each a question with its answer, figures, tables and limits."""

from mechrep.views.report.contents import save_tables as save_tables
from mechrep.views.report.figures import ReportFigure as ReportFigure
from mechrep.views.report.section import Badge as Badge
from mechrep.views.report.section import Section as Section
from mechrep.views.report.tables import ReportTable as ReportTable
from mechrep.views.report.write import report_html as report_html
from mechrep.views.report.write import write_report as write_report
