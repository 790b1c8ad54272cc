"""The report: one HTML file made of sections, each a question with its answer, figures, tables and limits."""

from mechrep.report.page import Badge as Badge
from mechrep.report.page import ReportFigure as ReportFigure
from mechrep.report.page import ReportTable as ReportTable
from mechrep.report.page import Section as Section
from mechrep.report.page import save_tables as save_tables
from mechrep.report.write import report_html as report_html
from mechrep.report.write import write_report as write_report
