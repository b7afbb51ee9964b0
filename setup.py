"Packaging: everything is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
results = cfg['lib_name'] + '.results'

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license='Apache-2.0',
    license_files=['LICENSE', 'course_lib/data/NOTICE'],
    keywords=cfg['keywords'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_name'], cfg['lib_name'] + '.*']) + [results],
    package_dir={results: 'nbs/results'},  # raw rows travel with the library, so that each page runs alone
    package_data={cfg['lib_name']: ['data/*'], results: ['*']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={
        'accelerate': cfg['accelerate_requirements'].split(),   # for `AccelerateCB`, and the lesson on several devices
        'dev': (cfg['dev_requirements'] + ' ' + cfg['accelerate_requirements']).split(),
    },
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    zip_safe=False,
)
